"""Calibrated rounding: outputs, not weights, are kept; what is stored is what was solved."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgellm_export.quantize import gptq, rtn
from edgellm_export.quantize.gptq import Effort
from edgellm_export.quantize.grids import search
from edgellm_export.recipe import Integer
from edgellm_export.weights import Float32

SCHEMES = [
    Integer(bits, size, asymmetric, minima)
    for bits, sizes in ((2, (32, 64)), (4, (16, 32, 64)), (8, (16, 32, 64)))
    for size in sizes
    for asymmetric, minima in ((False, False), (True, False), (False, True))
]


def problem(seed: int, rows: int = 40, columns: int = 128) -> tuple[Float32, Float32]:
    """A weight and H of inputs that hang together and differ in size, as a model's do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((600, columns)) @ rng.standard_normal((columns, columns))
    x = (mixed * np.exp(rng.standard_normal(columns))).astype(np.float32)
    weight = (rng.standard_t(5, (rows, columns)) / np.sqrt(columns)).astype(np.float32)
    return weight, x.T @ x


def plain(scheme: Integer) -> Integer:
    """What round to nearest has for it."""
    return Integer(scheme.bits, scheme.block_size, scheme.asymmetric or scheme.minima)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_change_less_than_with_round_to_nearest(scheme: Integer) -> None:
    for seed in range(3):
        weight, h = problem(seed)
        calibrated = gptq.quantize(weight, h, scheme).dequantize()
        nearest = rtn.quantize(weight, plain(scheme)).dequantize()
        assert gptq.loss(weight, calibrated, h) < 0.8 * gptq.loss(weight, nearest, h)


def test_descent_and_refit_never_make_it_worse() -> None:
    weight, h = problem(3)
    damped = gptq.damp(h, 0.01).astype(np.float32)
    for asymmetric, minima in ((False, False), (True, False), (False, True)):
        grid = search(weight, np.diag(damped), Integer(4, 32, asymmetric, minima))
        codes = gptq.carry_errors(weight, grid, gptq.inverse_factor(gptq.damp(h, 0.01), None), None)
        losses = [gptq.loss(weight, grid.dequantize(codes), damped)]
        for _ in range(3):
            grid = gptq.refit(weight, codes, grid, damped)
            losses.append(gptq.loss(weight, grid.dequantize(codes), damped))
            codes = gptq.descend(weight, codes, grid, damped)
            losses.append(gptq.loss(weight, grid.dequantize(codes), damped))
        assert all(b <= a * 1.001 for a, b in pairwise(losses))
        assert losses[-1] < losses[0]


def test_the_factor_is_that_of_the_inverse() -> None:
    _, h = problem(1, columns=32)
    order = np.random.default_rng(0).permutation(32)
    damped = gptq.damp(h, 0.01)
    u = gptq.inverse_factor(damped, order).astype(np.float64)
    assert np.allclose(u, np.triu(u))
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    assert np.abs(u.T @ u - inverse).max() < 1e-4 * np.abs(inverse).max()


def test_the_search_weighs_what_matters() -> None:
    weight, _ = problem(5)
    importance = np.ones(128, np.float32)
    importance[::16] = 100
    scheme = Integer(4, 16, True)

    def error(grid_importance: Float32) -> float:
        grid = search(weight, grid_importance, scheme)
        codes = np.clip(np.rint((weight - grid.wide(grid.offset)) / grid.wide(grid.scale)), 0, 15)
        return float((((grid.dequantize(codes) - weight) ** 2) * importance).sum())

    assert error(importance) < error(np.ones(128, np.float32))


def test_blocks_that_float16_grids_hold_exactly_come_back_exactly() -> None:
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 16, (8, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    scales = rng.uniform(0.01, 0.02, (8, 4, 1)).astype(np.float16).astype(np.float32)
    minima = -(scales * 7.3).astype(np.float16).astype(np.float32)
    weight = (codes * scales + minima).reshape(8, 128).astype(np.float32)
    _, h = problem(2)
    found = gptq.quantize(weight, h, Integer(4, 32, False, minima=True))
    assert np.abs(found.dequantize() - weight).max() < 1e-3 * np.abs(weight).max()


def test_inputs_that_never_occur_and_blocks_of_zeros_are_no_trouble() -> None:
    weight, h = problem(6)
    h[:, 64:], h[64:] = 0, 0
    weight[:, 32:64] = 0
    for scheme in SCHEMES:
        found = gptq.quantize(weight, h, scheme).dequantize()
        assert np.isfinite(found).all()
        if scheme.block_size <= 32:
            # Blocks of zeros may carry a little of what others lost, more of it with 2 bits.
            share = 0.05 if scheme.bits == 2 else 0.02
            assert np.abs(found[:, 32:64]).max() < share * np.abs(weight).max()
    assert np.isfinite(gptq.quantize(weight, np.zeros_like(h), SCHEMES[0]).dequantize()).all()


def test_the_scale_of_the_statistics_does_not_matter() -> None:
    weight, h = problem(7)
    scheme = Integer(4, 32, True)
    first = gptq.quantize(weight, h, scheme)
    second = gptq.quantize(weight, h * np.float32(1024), scheme)
    assert np.array_equal(first.packed, second.packed)


def test_without_statistics_the_searched_grid_is_rounded_to() -> None:
    weight, _ = problem(9)
    scheme = Integer(4, 32, True)
    found = gptq.quantize(weight, None, scheme).dequantize()
    nearest = rtn.quantize(weight, scheme).dequantize()
    assert ((found - weight) ** 2).sum() <= 1.02 * ((nearest - weight) ** 2).sum()


def test_more_rows_than_a_chunk_are_solved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = problem(10)
    whole = gptq.quantize(weight, h, Integer(4, 32, True), Effort(sweeps=1))
    monkeypatch.setattr(gptq, "CHUNK_ROWS", 16)
    parts = gptq.quantize(weight, h, Integer(4, 32, True), Effort(sweeps=1))
    assert (whole.packed != parts.packed).mean() < 0.01
