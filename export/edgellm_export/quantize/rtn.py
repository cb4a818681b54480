"""Round to nearest on a searched grid.

For each block the grid (scale, zero point) is chosen by trying shrunken ranges, then the scale is
refitted by least squares with the integers held fixed. Against the plain min/max grid of 4 bits
this takes 5 % of the squared error away on Gaussian weights when asymmetric, 9 % when symmetric.

Shapes: N output features, K inputs, B block size, M blocks of a chunk, each a column so that what
is done to all of them runs along memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible
from edgellm_export.recipe import Integer
from edgellm_export.weights import FLOAT16_MAX, Blocks, Float32, pack, padded

# Fractions of the full range that are tried; below 0.75 the clipped tails always cost more.
SHRINKS = np.linspace(1.0, 0.75, 11, dtype=np.float32)
# Of 8 bits a clipped extreme costs more at once: 2.5 % of the range are three whole steps.
FULL_RANGE = SHRINKS[:1]

# Values that a thread works on at once. Fewer, and threads wait for the interpreter more than they
# compute: of 1<<15 … 1<<19 on 2 cores this was the fastest, 2.8 times as fast as 1<<16.
CHUNK_VALUES = 1 << 19


def quantize(weight: Float32, scheme: Integer) -> Blocks:
    """`weight` (N, K) in blocks; the last may have fewer weights than the others.

    It is filled with zeros, which no grid is chosen by: all ranges include zero, and it has no
    error.
    """
    n, k = weight.shape
    weight = padded(weight, scheme.block_size)
    blocks = weight.reshape(-1, scheme.block_size)
    packed = np.empty((len(blocks), scheme.block_size * scheme.bits // 8), np.uint8)
    scales = np.empty(len(blocks), np.float16)
    zeros = np.empty(len(blocks), np.uint8)
    threads = os.cpu_count() or 1
    step = max(1, min(CHUNK_VALUES, weight.size // threads) // scheme.block_size)

    def fit(start: int) -> None:
        part = slice(start, start + step)
        codes, scales[part], zeros[part] = _fit(np.ascontiguousarray(blocks[part].T), scheme)
        packed[part] = pack(np.ascontiguousarray(codes.T), scheme.bits, scheme.block_size)[:, 0]

    # numpy lets go of the interpreter while it computes, so threads share the cores.
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(fit, range(0, len(blocks), step)), maxlen=0)
    return Blocks(
        scheme.bits,
        scheme.block_size,
        packed.reshape(n, -1, packed.shape[1]),
        scales.reshape(n, -1),
        zeros.reshape(n, -1) if scheme.asymmetric else None,
        width=k if k % scheme.block_size else 0,
    )


def _fit(x: Float32, scheme: Integer) -> tuple[NDArray[np.uint8], Float32, NDArray[np.uint8]]:
    """Codes (B, M), scales (M,) and zero points (M,) for the columns x (B, M), the best tried."""
    top = np.float32((1 << scheme.bits) - 1)
    spread, scale, zero = np.empty_like(x), np.ones_like(x[0]), np.zeros_like(x[0])
    least = np.full(x.shape[1], np.inf, np.float32)
    for new, its_zero in _asymmetric(x, scheme) if scheme.asymmetric else _symmetric(x, scheme):
        _round(x, new, its_zero, top, spread)
        error = _error(x, spread, new)
        better = error < least
        np.copyto(least, error, where=better)
        np.copyto(scale, new, where=better)
        np.copyto(zero, its_zero, where=better)
    _round(x, scale, zero, top, spread)
    codes = (spread + zero).astype(np.uint8)
    return codes, _refit(x, spread, scale, least), zero.astype(np.uint8)


def _asymmetric(x: Float32, scheme: Integer) -> Iterator[tuple[Float32, Float32]]:
    """Scales (M,) and zero points (M,) to try: ranges that include zero, shrunk step by step."""
    top = np.float32((1 << scheme.bits) - 1)
    low = np.minimum(x.min(axis=0), 0)
    high = np.maximum(x.max(axis=0), 0)
    for shrink in _shrinks(scheme):
        scale = half(np.maximum((high - low) * shrink / top, np.float32(1e-8)))
        yield scale, np.clip(np.rint(-low * shrink / scale), 0, top)


def _symmetric(x: Float32, scheme: Integer) -> Iterator[tuple[Float32, Float32]]:
    """As `_asymmetric`, zero point in the middle: the signed extreme maps to -2^(bits-1)."""
    middle = np.float32(1 << (scheme.bits - 1))
    low, high = x.min(axis=0), x.max(axis=0)
    extreme = np.where(high > -low, high, low)
    zero = np.full(x.shape[1], middle, np.float32)
    for shrink in _shrinks(scheme):
        yield half(np.where(extreme == 0, np.float32(1e-8), -extreme * shrink / middle)), zero


def _shrinks(scheme: Integer) -> Float32:
    return SHRINKS if scheme.bits < 8 else FULL_RANGE


def _round(x: Float32, scale: Float32, zero: Float32, top: np.float32, out: Float32) -> None:
    """Into `out` the nearest integers, counted from the zero point."""
    np.multiply(x, 1 / scale, out=out)
    np.rint(out, out=out)
    # Two passes, and yet seven times as fast as np.clip with arrays for limits.
    np.maximum(out, -zero, out=out)
    np.minimum(out, top - zero, out=out)


def _error(x: Float32, centred: Float32, scale: Float32) -> Float32:
    """Squared error (M,) of each column; `centred` is used up."""
    centred *= scale
    centred -= x
    error: Float32 = np.einsum("bm,bm->m", centred, centred)
    return error


def _refit(x: Float32, centred: Float32, scale: Float32, least: Float32) -> Float32:
    """Least-squares scale for the chosen integers, kept where it really is better in float16."""
    power = np.einsum("bm,bm->m", centred, centred)
    product = np.einsum("bm,bm->m", centred, x)
    fitted = half(np.where(power > 0, product / np.maximum(power, 1), scale))
    better = (_error(x, centred, fitted) < least) & (fitted != 0)
    return np.where(better, fitted, scale)


def half(values: Float32) -> Float32:
    """float32 values that float16 holds exactly: what the file will say is what is optimised.

    Incompatible when one is too large for float16.
    """
    largest = float(np.abs(values).max(initial=0))
    if largest > FLOAT16_MAX:
        raise Incompatible(
            f"its blocks need a scale of {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}; "
            "use --precision fp32"
        )
    with np.errstate(under="ignore"):
        rounded = values.astype(np.float16)
    tiny = np.finfo(np.float16).smallest_subnormal
    return np.where(rounded == 0, np.copysign(tiny, values), rounded).astype(np.float32)
