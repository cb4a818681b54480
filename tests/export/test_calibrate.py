"""Calibration: captured is what the forward pass computes; reruns resume; text is seeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import TINY, UNTIED, Kind

from edgellm.bundle.manifest import Source
from edgellm.errors import NotFound, StorageFailed, UsageError
from edgellm_export import arch, reference
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.pipeline import Job, export_bundle, silent
from edgellm_export.quantize import calibrate as module
from edgellm_export.quantize import capture as capturing
from edgellm_export.quantize.calibrate import Calibration, calibrate
from edgellm_export.recipe import recipe
from edgellm_export.weights import Float32, to_float32

TEXT = "the quick brown fox jumps over the lazy dog in the year that the water was there\n" * 120


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_TOKENS", 32)


def source(folder: Path, sizes: tiny.Sizes = TINY) -> Checkpoint:
    return open_checkpoint(tiny.write_folder(folder / "source", sizes))


def from_file(folder: Path, tokens: int = 96) -> Calibration:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    return Calibration(folder / "cache", text, tokens)


def run(checkpoint: Checkpoint, wanted: Calibration) -> module.Calibrated:
    return calibrate(checkpoint, arch.find("llama"), wanted, silent)


def kept(cache: Path, name: str) -> Path:
    (found,) = cache.rglob(name)
    return found


def reference_sums(
    checkpoint: Checkpoint, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> dict[int, Float32]:
    """XᵀX by the id of the weight each product of the numpy forward pass reads."""
    weights = {name: to_float32(checkpoint.weight(name)) for name in checkpoint.names()}
    sums: dict[str, Float32] = {}

    class Watched(np.ndarray):
        name: str

        @property
        def T(self) -> np.ndarray:  # type: ignore[override]
            turned = self.view(np.ndarray).T.view(Turned)
            turned.name = self.name
            return turned

    class Turned(np.ndarray):
        name: str

        def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
            sums[self.name] = sums.get(self.name, 0) + x.T @ x
            return x @ self.view(np.ndarray)

        __array_priority__ = 10
        __array_ufunc__ = None

    def weight(name: str) -> Float32:
        values = weights[name]
        if values.ndim == 1 or name == "model.embed_tokens.weight":
            return values
        watched = values.view(Watched)
        watched.name = name
        return watched

    for row in ids:
        reference.forward(checkpoint.config, weight, row.tolist())
    return sums  # type: ignore[return-value]


def test_captured_sums_are_those_of_the_numpy_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = source(tmp_path, UNTIED)
    wanted = from_file(tmp_path)
    found = run(checkpoint, wanted)
    ids = np.load(kept(wanted.cache, "ids.npy"))
    assert ids.shape == (3, 32)
    expected = reference_sums(checkpoint, ids, monkeypatch)
    pairs = {"lm_head": "lm_head.weight"}
    for i in range(UNTIED.layers):
        at = f"model.layers.{i}"
        pairs |= {
            f"layers.{i}.qkv": f"{at}.self_attn.q_proj.weight",
            f"layers.{i}.out": f"{at}.self_attn.o_proj.weight",
            f"layers.{i}.gate_up": f"{at}.mlp.gate_proj.weight",
            f"layers.{i}.down": f"{at}.mlp.down_proj.weight",
        }
    for ours, theirs in pairs.items():
        sums = found.statistics(ours)
        assert sums is not None
        assert np.abs(sums - expected[theirs]).max() < 1e-3 * np.abs(sums).max()  # type: ignore[index]
    assert found.statistics("embed_tokens") is None


def test_groups_of_layers_give_the_same_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = source(tmp_path)
    whole = run(checkpoint, from_file(tmp_path)).statistics
    first = {name: whole(name) for name in ("layers.0.qkv", "layers.1.down", "embed_tokens")}
    monkeypatch.setattr(capturing, "GROUP_BYTES", 1)
    (tmp_path / "again").mkdir()
    parts = run(checkpoint, from_file(tmp_path / "again")).statistics
    for name, expected in first.items():
        found = parts(name)
        assert expected is not None
        assert found is not None
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_rerun_takes_what_is_there_and_makes_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, wanted = source(tmp_path), from_file(tmp_path)
    before = run(checkpoint, wanted).statistics("layers.0.out")
    kept(wanted.cache, "layers.0.out.npy").unlink()
    made: list[list[str]] = []
    original = capturing._sum

    def watched(*args):  # type: ignore[no-untyped-def]
        made.append(list(args[3]))
        return original(*args)

    monkeypatch.setattr(capturing, "_sum", watched)
    after = run(checkpoint, wanted).statistics("layers.0.out")
    assert made == [["layers.0.out"]]
    assert before is not None
    assert after is not None
    assert np.array_equal(before, after)


def test_an_interrupted_run_leaves_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, wanted = source(tmp_path), from_file(tmp_path)
    saved: list[str] = []
    original = np.save

    def stop(file, array):  # type: ignore[no-untyped-def]
        if len(saved) == 3:
            file.write(b"half")
            raise KeyboardInterrupt
        saved.append(file.name)
        original(file, array)

    monkeypatch.setattr(np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, wanted)
    left = sorted(path.name for path in wanted.cache.glob("*/*"))
    assert len(left) == 3
    assert all(name.endswith(".npy") for name in left)
    assert not list(wanted.cache.glob("import.*"))


def test_statistics_that_have_gone_are_an_error_and_never_a_worse_model(tmp_path: Path) -> None:
    checkpoint, wanted = source(tmp_path), from_file(tmp_path)
    found = run(checkpoint, wanted)
    kept(wanted.cache, "layers.1.down.npy").unlink()
    with pytest.raises(StorageFailed, match="run the export again"):
        found.statistics("layers.1.down")


def test_the_models_own_words_are_the_same_for_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_TOKENS", 128)  # longer than a request
    checkpoint = source(tmp_path)
    ids = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        cache = tmp_path / name
        run(checkpoint, Calibration(cache, None, 384, seed))
        ids.append(np.load(kept(cache, "ids.npy")))
    assert ids[0].shape == (3, 128)
    assert np.array_equal(ids[0], ids[1])
    assert not np.array_equal(ids[0], ids[2])


def test_only_the_last_models_statistics_are_kept(tmp_path: Path) -> None:
    wanted = from_file(tmp_path)
    run(source(tmp_path), wanted)
    run(open_checkpoint(tiny.write_folder(tmp_path / "other", UNTIED)), wanted)
    assert len([path for path in wanted.cache.iterdir() if path.is_dir()]) == 1


def test_bad_text_is_named(tmp_path: Path) -> None:
    checkpoint = source(tmp_path)
    with pytest.raises(NotFound, match=r"missing\.txt"):
        run(checkpoint, Calibration(tmp_path / "c", tmp_path / "missing.txt"))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        run(checkpoint, Calibration(tmp_path / "c", tmp_path / "bad.txt"))
    (tmp_path / "short.txt").write_text("the fox")
    with pytest.raises(UsageError, match="longer text"):
        run(checkpoint, Calibration(tmp_path / "c", tmp_path / "short.txt"))
    with pytest.raises(UsageError, match="32 tokens or more"):
        Calibration(tmp_path / "c", None, 5)


def test_a_calibrated_bundle_says_so_and_passes_its_self_check(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", TINY, Kind.F16)
    out = tmp_path / "out"
    out.mkdir()
    lines: list[str] = []
    calibration = from_file(tmp_path)
    job = Job(path, recipe("int8"), Source("test:tiny"), "tiny", calibration=calibration)
    manifest = export_bundle(job, out, lines.append)
    assert "calibrated (GPTQ)" in manifest.recipe["linear"]
    assert manifest.recipe["calibration"]["tokens"] == 96
    assert manifest.recipe["calibration"]["text"] == "a file"


SUPER = replace(TINY, hidden=256, inner=256)
MIXED = {"q_proj": Kind.Q4_K, "k_proj": Kind.Q8_0, "v_proj": Kind.Q6_K}


@pytest.mark.parametrize("target_mb", [None, 0.62])
def test_what_lies_apart_in_the_checkpoint_is_calibrated(
    tmp_path: Path, target_mb: float | None
) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", SUPER, Kind.Q8_0, kinds=MIXED)
    (tmp_path / "out").mkdir()
    wanted = replace(from_file(tmp_path), target_mb=target_mb)
    job = Job(path, recipe("int4"), Source("x"), "x", calibration=wanted)
    found = export_bundle(job, tmp_path / "out").recipe
    planned = found.get("matrices", {})
    assert any(name.endswith(".qkv.q_proj") for name in planned) == (target_mb is not None)
    if target_mb is not None:
        (data,) = (tmp_path / "out" / "onnx").glob("*_data")
        assert 0.9 * target_mb < data.stat().st_size / 1e6 <= target_mb


def test_a_recipe_that_rounds_nothing_cannot_be_calibrated() -> None:
    with pytest.raises(UsageError, match="--precision int4"):
        recipe("fp16").calibrated()
