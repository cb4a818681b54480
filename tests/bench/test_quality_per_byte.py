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

from edgellm.bench import quality
from edgellm.bench.quality import Report, Scope, Window, evaluate
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.recipe import Integer, Recipe, recipe
from edgellm_export.weights import to_float32


def written(path: Path, logits: NDArray[np.float32], tokens: NDArray[np.int32]) -> Path:
    """`logits` (windows, rows, V) in llama-perplexity's file format."""
    count, window = tokens.shape
    vocabulary = logits.shape[-1]
    with path.open("wb") as file:
        file.write(b"_logits_" + np.array([window, vocabulary, count], np.int32).tobytes())
        file.write(tokens.tobytes())
        for row in logits.reshape(-1, vocabulary):
            lowest = max(row.min(), row.max() - 16)
            scale = np.float32((row.max() - lowest) / 65535)
            steps = np.rint(np.maximum(row - lowest, 0) / scale).astype(np.uint16)
            padding = np.zeros(vocabulary % 2, np.uint16)
            file.write(np.array([scale, lowest], np.float32).tobytes())
            file.write(steps.tobytes() + padding.tobytes())
    return path


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


def test_logits_of_llama_perplexity_are_compared_as_ours_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 15, (2, 8)).astype(np.int32)
    base, model = (2 * rng.standard_normal((2, 3, 15)).astype(np.float32) for _ in range(2))
    files = [
        written(tmp_path / name, values, tokens) for name, values in (("a", base), ("b", model))
    ]
    report = peers.compare(*files)
    p, q = (quality.log_softmax(row) for row in (base[1, 2], model[1, 2]))
    assert list(peers.read_rows(files[0]))[-1][1] == tokens[1, 7]
    assert np.exp(p) @ (p - q) <= report.kl_p99 + 1e-3
    expected = [
        np.exp(p) @ (p - q)
        for p, q in (
            (quality.log_softmax(a), quality.log_softmax(b))
            for a, b in zip(base.reshape(-1, 15), model.reshape(-1, 15), strict=True)
        )
    ]
    assert report.tokens == 6
    assert report.kl_mean == pytest.approx(np.mean(expected), rel=1e-3)
    (tmp_path / "c").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="no file of llama-perplexity"):
        list(peers.read_rows(tmp_path / "c"))


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
