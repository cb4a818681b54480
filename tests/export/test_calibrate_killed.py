"""A killed calibration leaves whole files only, and a rerun takes them instead of making them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import TINY

from edgellm_export import arch
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.pipeline import silent
from edgellm_export.quantize import calibrate as module
from edgellm_export.quantize import capture as capturing
from edgellm_export.quantize.calibrate import Calibration, calibrate

ROOT = Path(__file__).parents[2]
TEXT = "the quick brown fox jumps over the lazy dog in the year that the water was there\n" * 120
# One matrix at a time, and none after the third: the parent kills it there.
CHILD = """
import sys, time
from pathlib import Path
from edgellm_export import arch
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.quantize import calibrate as module, capture
module.WINDOW_TOKENS, capture.GROUP_BYTES = 32, 1
source, text, cache = map(Path, sys.argv[1:])
save = capture.save
def slowly(path, array):
    if len(list(path.parent.glob("layers.*.npy"))) == 3:
        path.with_suffix(".1.tmp").write_bytes(b"half")
        print("third", flush=True)
        time.sleep(600)
    save(path, array)
capture.save = slowly
wanted = module.Calibration(cache, text, 96)
module.calibrate(open_checkpoint(source), arch.find("llama"), wanted, lambda line: None)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_rerun_after_sigkill_takes_over_what_was_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write_folder(tmp_path / "source", TINY)
    text, cache = tmp_path / "text.txt", tmp_path / "cache"
    text.write_text(TEXT, encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(text), str(cache)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"third"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("*/*.npy")}
    assert list(cache.glob("import.*"))  # nobody could clean up
    assert list(cache.glob("*/*.tmp"))

    made: list[str] = []
    original = capturing._sum

    def watched(*args):  # type: ignore[no-untyped-def]
        made.extend(args[3])
        return original(*args)

    monkeypatch.setattr(module, "WINDOW_TOKENS", 32)
    monkeypatch.setattr(capturing, "_sum", watched)
    found = calibrate(
        open_checkpoint(source), arch.find("llama"), Calibration(cache, text, 96), silent
    )
    taken = {name.removesuffix(".npy") for name in before} - {"ids"}
    assert len(taken - {"embed_tokens"}) == 3
    assert not taken.intersection(made)
    after = {path.name: path.stat().st_mtime_ns for path in cache.glob("*/*.npy")}
    assert {name: after[name] for name in before} == before
    for name in (*taken, *made):
        total = found.statistics(name)
        assert total is not None
        assert np.isfinite(total).all()
    assert not list(cache.glob("import.*"))
    assert not list(cache.glob("*/*.tmp"))


def test_two_processes_do_not_share_a_scratch_folder(tmp_path: Path) -> None:
    """The second waits; the first's import stays whole meanwhile."""
    from edgellm_export.quantize.place import alone

    program = (
        "import sys; from pathlib import Path\n"
        "from edgellm_export.quantize.place import alone\n"
        "with alone(Path(sys.argv[1]), 'key') as (kept, scratch): print('in', flush=True)"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    with alone(tmp_path, "key") as (_, scratch):
        (scratch / "weights").write_bytes(b"mine")
        second = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths},
        )
        time.sleep(0.5)
        assert second.poll() is None
        assert (scratch / "weights").read_bytes() == b"mine"
    assert second.communicate()[0].strip() == b"in"
    assert second.returncode == 0
