"""Weights in blocks: packing loses nothing, and every operation means what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm_export.weights import (
    Blocks,
    Dense,
    Float32,
    Steps,
    alike,
    floats,
    pack,
    stack,
    to_float32,
    unpack,
)

N, K, BLOCK = 6, 64, 32
BITS = [2, 4, 8]


def codes(bits: int, n: int = N, k: int = K, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (n, k), dtype=np.uint8)


def blocks(
    bits: int = 4, zeros: bool = False, minima: bool = False, n: int = N, seed: int = 0
) -> Blocks:
    rng = np.random.default_rng(seed)
    grid = (n, K // BLOCK)
    return Blocks(
        bits,
        BLOCK,
        pack(codes(bits, n, seed=seed), bits, BLOCK),
        rng.uniform(0.5, 2, grid).astype(np.float16),
        rng.integers(0, 1 << bits, grid, dtype=np.uint8) if zeros else None,
        rng.standard_normal(grid).astype(np.float16) if minima else None,
    )


def slowly(b: Blocks) -> Float32:
    """Dequantized one number at a time, from the definition."""
    n, k = b.shape
    q = unpack(b.packed, b.bits).reshape(n, k)
    out = np.zeros((n, k), np.float32)
    for row in range(n):
        for col in range(k):
            at = row, col // b.block_size
            scale = np.float32(b.scales[at])
            if b.minima is not None:
                out[row, col] = np.float32(q[row, col]) * scale + np.float32(b.minima[at])
            else:
                zero = 1 << (b.bits - 1) if b.zero_points is None else int(b.zero_points[at])
                out[row, col] = np.float32(int(q[row, col]) - zero) * scale
    return out


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_unpacking_gives_back_what_was_packed(bits: int, n: int, count: int, seed: int) -> None:
    q = codes(bits, n, 16 * count, seed)
    packed = pack(q, bits, 16)
    assert packed.shape == (n, count, 16 * bits // 8)
    assert np.array_equal(unpack(packed, bits).reshape(n, -1), q)


def test_packing_puts_the_first_number_into_the_low_bits() -> None:
    q = np.arange(16, dtype=np.uint8)[None]
    assert pack(q, 4, 16)[0, 0, :2].tolist() == [0x10, 0x32]
    assert pack(q % 4, 2, 16)[0, 0, 0] == 0b11_10_01_00
    assert pack(q, 8, 16)[0, 0].tolist() == list(range(16))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("zeros", "minima"), [(False, False), (True, False), (False, True)])
def test_dequantizing_follows_the_definition(bits: int, zeros: bool, minima: bool) -> None:
    b = blocks(bits, zeros, minima)
    assert b.shape == (N, K)
    assert np.array_equal(b.dequantize(), slowly(b))
    assert np.array_equal(b.codes(), codes(bits))


@pytest.mark.parametrize(("zeros", "minima"), [(False, False), (True, False), (False, True)])
def test_rows_are_the_same_numbers_in_another_order(zeros: bool, minima: bool) -> None:
    b, order = blocks(4, zeros, minima), np.array([5, 0, 0, 3])
    assert np.array_equal(b.rows(order).dequantize(), b.dequantize()[order])


@pytest.mark.parametrize(("zeros", "minima"), [(False, False), (True, False), (False, True)])
def test_stacking_equal_formats_stays_in_blocks(zeros: bool, minima: bool) -> None:
    a, b = blocks(4, zeros, minima), blocks(4, zeros, minima, n=3, seed=1)
    joined = stack([a, b])
    assert isinstance(joined, Blocks)
    assert np.array_equal(joined.dequantize(), np.concatenate([a.dequantize(), b.dequantize()]))


@pytest.mark.parametrize(
    "other",
    [
        blocks(8, seed=1),
        blocks(4, zeros=True, seed=1),
        blocks(4, minima=True, seed=1),
        Blocks(4, 16, pack(codes(4), 4, 16), np.ones((N, K // 16), np.float16)),
        Blocks(4, BLOCK, pack(codes(4), 4, BLOCK), np.ones((N, K // BLOCK), np.float32)),
        Dense((N, K), "float16", lambda: np.full((N, K), 0.25, np.float32)),
    ],
)
def test_stacking_mixed_formats_is_dense_and_exact(other: Blocks | Dense) -> None:
    first = blocks(4)
    for parts in ([first, other], [other, first]):
        joined = stack(parts)
        assert isinstance(joined, Dense)
        assert joined.shape == (2 * N, K)
        assert np.array_equal(joined.numpy(), np.concatenate([to_float32(p) for p in parts]))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["float16", "float16"], "float16"),
        (["bfloat16", "bfloat16"], "bfloat16"),
        (["float16", "bfloat16"], "float32"),
        (["float16", "float32"], "float32"),
    ],
)
def test_stacked_floats_keep_their_type_when_they_agree(kinds: list[str], expected: str) -> None:
    parts = [Dense((N, K), kind, lambda: np.ones((N, K), np.float32)) for kind in kinds]
    joined = stack(parts)
    assert isinstance(joined, Dense)
    assert joined.dtype == expected


def test_dense_weights_are_read_only_when_they_are_asked_for() -> None:
    reads = []

    def read() -> Float32:
        reads.append(1)
        return np.zeros((N, K), np.float32)

    joined = stack([Dense((N, K), "float32", read), Dense((N, K), "float32", read)])
    assert (joined.shape, reads) == ((2 * N, K), [])
    assert to_float32(joined).shape == (2 * N, K)
    assert len(reads) == 2


def stepped(rows: int, seed: int) -> Blocks:
    """Blocks of 16, two to a coarse scale, as GGUF's K-quants have them."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((rows, 2)).astype(np.float16)
    steps = rng.integers(-32, 32, (rows, 4)).astype(np.int8)
    packed = rng.integers(0, 256, (rows, 4, 8)).astype(np.uint8)
    return Blocks(4, 16, packed, Steps(coarse, steps))


def test_steps_are_products_of_their_coarse_scale() -> None:
    made = Steps(np.array([[0.5, -3]], np.float16), np.array([[1, -2, 63, 0]], np.int8))
    assert floats(made).tolist() == [[0.5, -1, -189, 0]]
    assert made.shape == (1, 4)
    assert made.nbytes == 2 * 2 + 4


def test_blocks_with_steps_stay_so_when_stacked_and_reordered() -> None:
    one, two = stepped(3, 0), stepped(2, 1)
    whole = stack([one, two])
    assert isinstance(whole, Blocks)
    assert isinstance(whole.scales, Steps)
    both = np.concatenate([one.dequantize(), two.dequantize()])
    assert np.array_equal(whole.dequantize(), both)
    order = np.array([4, 0, 2])
    assert np.array_equal(whole.rows(order).dequantize(), both[order])


def test_blocks_with_steps_and_with_plain_scales_are_not_alike() -> None:
    one = stepped(3, 0)
    plain = replace(one, scales=floats(one.scales))
    assert not alike([one, plain])
    assert isinstance(stack([one, plain]), Dense)
    assert np.array_equal(plain.dequantize(), one.dequantize())
