"""`--ort`: the native graph in ONNX Runtime's own format says the same, and what it needs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny

from edgellm.bundle import manifest
from edgellm.bundle.open import verify
from edgellm.cli import main
from edgellm.errors import EdgellmError, UsageError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import decode, prefill
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm_export.targets import ort

PROMPT = np.random.default_rng(5).integers(3, tiny.vocab_size(), 20).tolist()
NEEDED = {"GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization"}


def greedy(graph: Path, shape: manifest.Shape) -> list[int]:
    session, cache = Session(graph, shape, LoadOptions(threads=1)), KVCache(shape, 64)
    logits = prefill(session, cache, PROMPT)
    tokens = decode(session, cache, logits, lambda row, _: int(row.argmax()), frozenset(), 30)
    return [token.id for token in tokens]


@pytest.mark.parametrize(
    "options", [("--precision", "int4"), ("--precision", "int8", "--kv", "int8")]
)
def test_the_file_loads_and_picks_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    source, out = tiny.write_folder(tmp_path / "source", tiny.UNTIED), tmp_path / "out"
    assert main(["export", str(source), "-o", str(out), "--ort", *options]) == 0
    found = verify(out)
    native = out / found.graphs["native"].path
    made = native.with_suffix(".ort")
    assert greedy(made, found.shape) == greedy(native, found.shape)
    # Alone: nothing of the weights stays outside.
    alone = tmp_path / "alone" / "model.ort"
    alone.parent.mkdir()
    alone.write_bytes(made.read_bytes())
    assert greedy(alone, found.shape) == greedy(native, found.shape)
    needed = (made.parent / ort.CONFIG_NAME).read_text(encoding="utf-8")
    assert set(needed.replace("\n", ",").replace(";", ",").split(",")) >= NEEDED
    assert str(tmp_path) not in needed
    names = {f"onnx/{made.name}", f"onnx/{ort.CONFIG_NAME}"}
    assert names <= set(found.files)
    assert names.isdisjoint(graph.path for graph in found.graphs.values())


def test_without_the_option_there_is_no_such_file(tmp_path: Path) -> None:
    tiny.make_bundle(tiny.write_folder(tmp_path / "source"), tmp_path / "out", "int8")
    assert not list((tmp_path / "out").rglob("*.ort"))


def test_the_tools_of_onnxruntime_stay_out_of_this_process() -> None:
    assert "onnxruntime.tools" not in sys.modules


def test_a_model_beyond_the_format_is_refused_in_one_line() -> None:
    ort.check_size({"codes": ort.LIMIT_BYTES - 8, "floats": 4, "dense": 4, "blocks": 9})
    with pytest.raises(UsageError, match=r"at most 2147 MB .* needs 3000; leave out --ort"):
        ort.check_size({"codes": 2_000_000_000, "floats": 1_000_000_000, "dense": 0})


def test_what_onnxruntime_cannot_save_is_one_line(tmp_path: Path) -> None:
    graph = tmp_path / "no.onnx"
    graph.write_bytes(b"nothing")
    shape = tiny.Shape("llama", 1, 1, 1, 8, 8, 8, 8, 8)
    with pytest.raises(EdgellmError, match=r"no.ort cannot be saved: .*leave out --ort") as caught:
        ort.write(graph, shape)
    assert "\n" not in str(caught.value)
