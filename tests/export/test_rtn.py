"""Round to nearest: the searched grid is never worse than the plain one, whatever the numbers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from edgellm.errors import Incompatible, UsageError
from edgellm_export.quantize import rtn, treat
from edgellm_export.quantize.rtn import quantize
from edgellm_export.recipe import Float, Integer, Keep
from edgellm_export.weights import Blocks, Dense, Float32, to_float32

SCHEMES = [Integer(bits, 32, asymmetric) for bits in (2, 4, 8) for asymmetric in (True, False)]
RNG = np.random.default_rng(0)
MATRICES: dict[str, Float32] = {
    "normal": RNG.standard_normal((48, 96)).astype(np.float32),
    "heavy tails": RNG.standard_t(2, (48, 96)).astype(np.float32),
    "one sign": (np.abs(RNG.standard_normal((16, 96))) + 5).astype(np.float32),
    "negative": (-np.abs(RNG.standard_normal((16, 96)))).astype(np.float32),
    "one outlier": np.where(np.arange(32 * 8) % 32 == 7, 100, 0.01)
    .reshape(8, 32)
    .astype(np.float32),
    "small": (RNG.standard_normal((16, 96)) * 1e-5).astype(np.float32),
    "below float16": (RNG.standard_normal((16, 96)) * 1e-9).astype(np.float32),
    "large": (RNG.standard_normal((16, 96)) * 1e4).astype(np.float32),
}


def plain_error(weight: Float32, scheme: Integer) -> np.ndarray:
    """Squared error of each block on the min/max grid, with the float16 scale a file can hold."""
    blocks = weight.reshape(-1, scheme.block_size).astype(np.float64)
    top, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    if scheme.asymmetric:
        low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
        scale = _halves((high - low) / top)
        zero = np.clip(np.rint(-low / scale), 0, top)
    else:
        extreme = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
        scale, zero = _halves(-extreme / middle), np.full(len(blocks), float(middle))
    q = np.clip(np.rint(blocks / scale[:, None] + zero[:, None]), 0, top)
    return np.asarray((((q - zero[:, None]) * scale[:, None] - blocks) ** 2).sum(axis=1))


def _halves(values: np.ndarray) -> np.ndarray:
    rounded = values.astype(np.float16).astype(np.float64)
    return np.where(rounded == 0, 1.0, rounded)


def error(found: Blocks, weight: Float32) -> np.ndarray:
    difference = found.dequantize().astype(np.float64) - weight
    return np.asarray((difference.reshape(-1, found.block_size) ** 2).sum(axis=1))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_no_block_is_worse_than_on_the_plain_grid(scheme: Integer, name: str) -> None:
    weight = MATRICES[name]
    found, plain = error(quantize(weight, scheme), weight), plain_error(weight, scheme)
    # float32 sums of squares decide between grids, so equal ones may differ in the last bits.
    assert (found <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("scheme", "share"), [(Integer(4, 32, True), 0.96), (Integer(4, 32, False), 0.93)]
)
def test_the_search_is_worth_its_time(scheme: Integer, share: float) -> None:
    weight = MATRICES["normal"]
    assert error(quantize(weight, scheme), weight).sum() < share * plain_error(weight, scheme).sum()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_the_file_can_hold_what_was_optimised(scheme: Integer, name: str) -> None:
    found = quantize(MATRICES[name], scheme)
    assert found.scales.dtype == np.float16
    assert np.isfinite(found.scales).all()
    assert (found.scales != 0).all()
    assert (found.zero_points is not None) == scheme.asymmetric
    assert found.minima is None
    assert found.packed.shape[2] == 32 * scheme.bits // 8


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_zeros_and_constants_stay_constant(scheme: Integer) -> None:
    weight = np.zeros((3, 96), np.float32)
    weight[1, 32:] = 0.3
    weight[2, :32] = -7.0
    found = quantize(weight, scheme).dequantize()
    assert (found[weight == 0] == 0).all()
    # One float16 rounding of the scale.
    assert np.allclose(found, weight, rtol=2**-10, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_outlier_does_not_reach_its_neighbour_block(scheme: Integer) -> None:
    weight = MATRICES["normal"].copy()
    calm = quantize(weight, scheme).dequantize()
    weight[0, 0] = 1e4
    assert np.array_equal(quantize(weight, scheme).dequantize()[:, 32:], calm[:, 32:])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_last_block_that_is_not_full_is_padded_with_zeros(scheme: Integer) -> None:
    weight = MATRICES["normal"][:, :70]
    found = quantize(weight, scheme)
    assert found.shape == (48, 70)
    whole = quantize(np.pad(weight, ((0, 0), (0, 26))), scheme).dequantize()
    assert (whole[:, 70:] == 0).all()
    assert np.array_equal(found.dequantize(), whole[:, :70])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_chunks_give_the_same_numbers(scheme: Integer, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = quantize(MATRICES["heavy tails"], scheme)
    monkeypatch.setattr(rtn, "CHUNK_VALUES", 320)
    in_chunks = quantize(MATRICES["heavy tails"], scheme)
    assert np.array_equal(at_once.packed, in_chunks.packed)
    assert np.array_equal(at_once.scales, in_chunks.scales)


def test_chunks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtn, "CHUNK_VALUES", 1 << 14)
    weight = np.zeros((1024, 512), np.float32)
    tracemalloc.start()
    try:
        quantize(weight, Integer(4, 32, True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The padded copy and the integers, one byte each, twice; without chunks more than eight times.
    assert peak < 2.5 * weight.nbytes


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_numbers_beyond_a_float16_scale_are_refused(scheme: Integer) -> None:
    with pytest.raises(Incompatible, match="float16 ends at 65504; use --precision fp32"):
        quantize(np.full((2, 32), 1e30, np.float32), scheme)


@pytest.mark.parametrize("block_size", [0, 8, 48, 512])
def test_block_sizes_that_no_kernel_has_are_wrong_usage(block_size: int) -> None:
    with pytest.raises(UsageError, match="block_size"):
        Integer(4, block_size, True)


@pytest.mark.parametrize(
    ("width", "block_size"), [(256, 128), (192, 64), (96, 32), (48, 16), (32, 32)]
)
def test_a_width_that_the_block_does_not_divide_gets_the_next_smaller_one(
    width: int, block_size: int
) -> None:
    dense = Dense((2, width), "float32", lambda: np.ones((2, width), np.float32))
    found = treat(dense, Integer(4, 128, True))
    assert isinstance(found, Blocks)
    assert (found.block_size, found.shape) == (block_size, (2, width))


def test_a_width_that_no_block_divides_is_refused() -> None:
    dense = Dense((2, 40), "float32", lambda: np.ones((2, 40), np.float32))
    with pytest.raises(Incompatible, match=r"width 40 is no multiple of 16.*fp16"):
        treat(dense, Integer(4, 32, True))


def test_each_treatment_does_what_it_says() -> None:
    weight = MATRICES["normal"]
    dense = Dense(weight.shape, "bfloat16", lambda: weight)
    assert treat(dense, Keep()) is dense
    half = treat(dense, Float("float16"))
    assert isinstance(half, Dense)
    assert (half.dtype, half.shape) == ("float16", weight.shape)
    quantized = treat(dense, Integer(8, 32, False))
    assert isinstance(quantized, Blocks)
    assert quantized.bits == 8
    assert np.abs(to_float32(quantized) - weight).max() < 0.02
