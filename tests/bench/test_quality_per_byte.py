"""tests/benchmarks: the table of quality per byte, without other programs and in seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).parents[1] / "export"))

import gguf_float
import peers
import quality_per_byte
import tiny_models as tiny
from quality_per_byte import Recorded, Row, Setting

from edgellm.bench.quality import Report, Scope, Window, evaluate
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.recipe import Integer, Recipe, recipe
from edgellm_export.weights import to_float32

# The shape of llama-perplexity's last words.
PRINTED = """
====== Perplexity statistics ======
Mean PPL(Q)                   :  24.480120 ±   1.262931
Mean PPL(base)                :  24.101938 ±   1.243822
====== KL divergence statistics ======
Mean    KLD:   0.032165 ±   0.001117
Maximum KLD:   2.103561
99.9%   KLD:   0.610221
99.0%   KLD:   0.265108
====== Token probability statistics ======
Same top p: 89.412 ± 0.482 %
"""


class Noise:
    """Seeded logits for every window."""

    def __init__(self, scale: float) -> None:
        self.scale, self.asked = scale, 0

    def encode(self, text: str) -> list[int]:
        return [1] * len(text)

    def logits(self, ids: list[int]) -> Iterator[NDArray[np.float32]]:
        self.asked += 1
        rng = np.random.default_rng(sum(ids))
        yield (self.scale * rng.standard_normal((len(ids), 16))).astype(np.float32)


def test_a_recorded_reference_gives_the_same_report_and_runs_once() -> None:
    windows = [Window(tuple(range(i, i + 8)), 4) for i in range(3)]
    expected = evaluate(windows, Noise(1.0), Noise(2.0))
    model = Noise(2.0)
    recorded = Recorded(model, windows)
    for _ in range(2):
        assert evaluate(windows, Noise(1.0), recorded) == expected
    assert model.asked == 3


def test_what_llama_perplexity_says_is_read() -> None:
    report = peers.read_report(PRINTED, Scope(4096, 512))
    assert report == Report(24.480120, 0.032165, 0.265108, 0.89412, 16 * 255)
    with pytest.raises(SystemExit, match="Mean    KLD"):
        peers.read_report(PRINTED.replace("Mean    KLD", "Mean"), Scope(4096, 512))


@pytest.mark.parametrize("sizes", [tiny.TINY, tiny.UNTIED], ids=["tied", "untied"])
def test_the_float_gguf_file_is_the_same_model(tmp_path: Path, sizes: tiny.Sizes) -> None:
    folder = tiny.write_folder(tmp_path / "model", sizes)
    gguf_float.write(folder, tmp_path / "model.gguf")
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "model.gguf")
    assert set(before.names()) == set(after.names())
    for name in before.names():
        assert np.array_equal(to_float32(before.weight(name)), to_float32(after.weight(name)))
    for key in ("num_hidden_layers", "num_key_value_heads", "rope_theta", "rms_norm_eps"):
        assert after.config[key] == pytest.approx(before.config[key])
    assert peers.tensor_bytes(tmp_path / "model.gguf") == sum(
        to_float32(before.weight(name)).nbytes for name in before.names()
    )


def test_bundles_are_made_once_and_measured_against_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_per_byte, "WINDOW_TOKENS", 32)
    monkeypatch.setattr(quality_per_byte, "texts", lambda: {"fox": "the quick brown fox " * 40})
    folder = tiny.write_folder(tmp_path / "model", tiny.TINY)
    setting = Setting("tiny", folder, tmp_path / "work", (), None, Scope(64, 32))
    setting.work.mkdir()
    scheme = Integer(4, 32, True)
    ours = {
        "fp32": quality_per_byte.bundle(setting, "fp32", recipe("fp32")),
        "int4": quality_per_byte.bundle(setting, "int4", Recipe("int4", scheme, scheme, "_q4")),
    }
    stamp = (ours["int4"] / "edgellm.json").stat().st_mtime_ns
    quality_per_byte.bundle(setting, "int4", recipe("int8"))
    assert (ours["int4"] / "edgellm.json").stat().st_mtime_ns == stamp
    rows = {row.contender: row for row in quality_per_byte.measured(setting, ours)}
    assert rows["fp32"].report.kl_mean == 0
    assert (rows["int4"].report.kl_mean or 0) > 0
    assert rows["int4"].mb < rows["fp32"].mb
    # What has been measured is not measured again.
    monkeypatch.setattr(quality_per_byte, "evaluate", None)
    assert {row.contender: row for row in quality_per_byte.measured(setting, ours)} == rows


def test_the_table_has_a_row_for_each_contender_by_falling_size() -> None:
    setting = Setting("m", Path(), Path(), (), None, Scope())
    rows = [
        Row(name, text, mb, Report(9.5, 0.01, 0.1, 0.9, 10))
        for name, mb in (("small", 1.0), ("large", 2.0))
        for text in quality_per_byte.texts()
    ]
    lines = quality_per_byte.table(setting, rows, {"large": 99.0}).splitlines()
    shown = [line.split(" |")[0] for line in lines if line.startswith(("| small", "| large"))]
    assert shown == ["| large", "| small"] * 2
    assert any("99 |" in line for line in lines)
