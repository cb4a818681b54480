"""Mixed precision: never over the budget, and bytes go where they remove most loss."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import UNTIED, Kind

from edgellm.bundle.manifest import Source
from edgellm.errors import Incompatible, UsageError
from edgellm_export.data import DataFile
from edgellm_export.matrices import store_matrix
from edgellm_export.pipeline import Job, export_bundle, silent
from edgellm_export.quantize import budget, gptq, treat
from edgellm_export.quantize import calibrate as module
from edgellm_export.quantize.budget import Choice, Material, spend, stored_bytes
from edgellm_export.quantize.calibrate import Calibration
from edgellm_export.quantize.sensitivity import trial_error
from edgellm_export.recipe import Integer, Keep, describe, recipe
from edgellm_export.weights import Blocks, Dense

SCHEMES = [Integer(4, 64, True), Integer(4, 32, True), Integer(8, 64, False)]
STORED = [*SCHEMES, Integer(4, 32, False, minima=True)]


def table(seed: int, matrices: int = 5) -> dict[str, list[Choice]]:
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(matrices):
        sizes = np.cumsum(rng.integers(10, 90, len(SCHEMES)))
        losses = np.sort(rng.random(len(SCHEMES)))[::-1]
        found[f"m{i}"] = [
            Choice(scheme, int(size), float(loss))
            for scheme, size, loss in zip(SCHEMES, sizes, losses, strict=True)
        ]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_is_kept_and_the_loss_is_near_the_best(seed: int) -> None:
    options = table(seed)
    least = sum(min(c.bytes for c in row) for row in options.values())
    most = sum(max(c.bytes for c in row) for row in options.values())
    for limit in (least, (least + most) // 2, most):
        chosen = spend(options, limit)
        assert sum(c.bytes for c in chosen.values()) <= limit
        loss = sum(c.loss for c in chosen.values())
        fitting = [
            sum(c.loss for c in row)
            for row in product(*options.values())
            if sum(c.bytes for c in row) <= limit
        ]
        # A greedy step left out costs at most one matrix's largest gain.
        gain = max(max(c.loss for c in row) - min(c.loss for c in row) for row in options.values())
        assert min(fitting) <= loss <= min(fitting) + gain


def test_more_bytes_never_mean_more_loss() -> None:
    options = table(3)
    losses = [sum(c.loss for c in spend(options, limit).values()) for limit in (300, 400, 500, 900)]
    assert losses == sorted(losses, reverse=True)


def test_a_target_too_small_says_the_least_there_is() -> None:
    with pytest.raises(UsageError, match="raise --target-mb"):
        spend(table(0), 1)


@pytest.mark.parametrize("scheme", STORED, ids=str)
def test_the_bytes_are_those_in_the_file(tmp_path: Path, scheme: Integer) -> None:
    weight = np.random.default_rng(0).standard_normal((24, 192)).astype(np.float32)
    with DataFile(tmp_path / "w") as data:
        store_matrix(data, "m", gptq.quantize(weight, None, scheme))
        data.append("end", np.zeros(16, np.float32))
        assert stored_bytes((24, 192), scheme) == data.bytes - 64


def test_the_matrix_whose_outputs_suffer_most_gets_the_bits() -> None:
    rng = np.random.default_rng(1)
    calm = rng.uniform(-1, 1, (32, 64)).astype(np.float32)
    wild = (rng.standard_normal((32, 64)) ** 3).astype(np.float32)
    weights = {"calm": calm, "wild": wild}
    shapes = {name: (32, 64) for name in weights}
    small, large = stored_bytes((32, 64), SCHEMES[0]), stored_bytes((32, 64), SCHEMES[2])
    same = dict.fromkeys(weights, 1e-3)
    errors = {name: trial_error(weight) for name, weight in weights.items()}
    # What an error of the same size costs the model is the same for both.
    kl = {
        name: same[name] * float((errors[name] ** 2).sum() / (weights[name] ** 2).sum())
        for name in weights
    }
    material = Material(shapes, weights.__getitem__, lambda _: None, kl)
    chosen = budget.plan(material, small + large)
    assert "int4" in describe(chosen["calm"])
    assert "int8" in describe(chosen["wild"])


def test_of_two_equal_matrices_the_one_that_the_model_feels_gets_the_bits() -> None:
    weight = np.random.default_rng(4).standard_normal((32, 64)).astype(np.float32)
    shapes = {"felt": (32, 64), "unfelt": (32, 64)}
    small, large = stored_bytes((32, 64), SCHEMES[0]), stored_bytes((32, 64), SCHEMES[2])
    kl = {"felt": 1e-2, "unfelt": 1e-4}
    chosen = budget.plan(Material(shapes, lambda _: weight, lambda _: None, kl), small + large)
    assert "int8" in describe(chosen["felt"])
    assert "int4" in describe(chosen["unfelt"])


def test_a_loss_of_a_tied_embedding_counts_products_and_lookups_as_they_cost() -> None:
    rng = np.random.default_rng(6)
    weight, x = (rng.standard_normal((64, 32)).astype(np.float32) for _ in range(2))
    h = x.T @ x
    both = budget.joined(h, weight, 3e-3, 1e-3)
    error = trial_error(weight)
    products, all_of_it = (gptq.loss(error, 0 * error, each) for each in (h, both))
    assert all_of_it == pytest.approx(1.5 * products, rel=1e-4)
    assert np.array_equal(budget.joined(h, weight, 3e-3, 0.0), h)
    assert np.isfinite(budget.joined(h, weight, 1e-3, 2e-3)).all()


def test_floats_that_were_4_bit_blocks_get_these_back_and_no_others_do() -> None:
    rng = np.random.default_rng(5)
    born = rng.standard_normal((32, 64)).astype(np.float32)
    codes = rng.integers(0, 16, (32, 2, 32))
    codes[:, :, 0], codes[:, :, 1] = 0, 15  # a quantizer uses its whole range
    scale, low = rng.uniform(0.01, 0.02, (2, 32, 2, 1)).astype(np.float16).astype(np.float32)
    was_q4_1 = (codes * scale - low).astype(np.float32).reshape(32, 64)
    for weight, expected in ((born, False), (was_q4_1, True)):
        found = budget.choices(weight, None, [*SCHEMES, budget.RECOVERED], 1e-3)
        assert any(choice.scheme == budget.RECOVERED for choice in found) == expected
        material = Material({"m": (32, 64)}, lambda _, w=weight: w, lambda _: None, {"m": 1e-3})
        plans = [budget.plan(material, 32 * 64, recover) for recover in (True, False)]
        assert [plan["m"] == budget.RECOVERED for plan in plans] == [expected, False]
    back = treat(Dense((32, 64), "float32", lambda: was_q4_1), budget.RECOVERED, np.eye(64))
    assert isinstance(back, Blocks)
    assert np.abs(back.dequantize() - was_q4_1).max() < 1e-6


def test_blocks_of_the_checkpoint_are_kept_where_they_fit() -> None:
    weight = np.random.default_rng(2).standard_normal((32, 64)).astype(np.float32)
    own = stored_bytes((32, 64), Integer(4, 32, True)) + 128
    material = Material({"m": (32, 64)}, lambda _: weight, lambda _: None, {"m": 1e-3}, {"m": own})
    assert budget.plan(material, own) == {"m": Keep()}
    assert isinstance(budget.plan(material, own - 1)["m"], Integer)


def test_a_width_without_blocks_is_refused_by_name() -> None:
    ones = np.ones((8, 40), np.float32)
    material = Material({"m": (8, 40)}, lambda _: ones, lambda _: None, {"m": 1e-3})
    with pytest.raises(Incompatible, match="m: its width 40"):
        budget.plan(material, 10**6)


def test_an_export_keeps_to_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_TOKENS", 32)
    path = tiny.write_gguf(tmp_path / "m.gguf", UNTIED, Kind.F16)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    sizes = []
    for target_mb in (0.15, 0.17, 0.30):
        out = tmp_path / str(target_mb)
        out.mkdir()
        wanted = Calibration(tmp_path / "cache", text, 96, target_mb=target_mb)
        job = Job(path, recipe("int4"), Source("test:tiny"), "tiny", calibration=wanted)
        manifest = export_bundle(job, out, silent)
        sizes.append(manifest.files["onnx/model_q4.onnx_data"].bytes)
        assert sizes[-1] <= target_mb * 1e6
        assert manifest.recipe["matrices"]
    assert sizes == sorted(sizes)
