"""Round to nearest on a searched grid.

For each block the grid (scale, zero point) is chosen by trying shrunken ranges, then the scale is
refitted by least squares with the integers held fixed. Against the plain min/max grid of 4 bits
this takes 5 % of the squared error away on Gaussian weights when asymmetric, 9 % when symmetric.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible
from edgellm_export.recipe import Integer
from edgellm_export.weights import FLOAT16_MAX, Blocks, Float32, pack

# Fractions of the full range that are tried; below 0.75 the clipped tails always cost more.
SHRINKS = np.linspace(1.0, 0.75, 11, dtype=np.float32)
Fit = tuple[NDArray[np.uint8], Float32, NDArray[np.uint8]]

# Values that one core works on at once: bounds the temporaries to a few MB whatever the matrix.
CHUNK_VALUES = 1 << 18


def quantize(weight: Float32, scheme: Integer) -> Blocks:
    """`weight` (N, K) in blocks; K that is not a multiple of the block is padded with zeros."""
    n, k = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -k % scheme.block_size)))
    blocks = padded.reshape(-1, scheme.block_size)
    fit = _fit_asymmetric if scheme.asymmetric else _fit_symmetric
    step = max(1, CHUNK_VALUES // scheme.block_size)
    pieces = [blocks[i : i + step] for i in range(0, len(blocks), step)]
    # numpy lets other threads run while it works.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda piece: fit(piece, scheme.bits), pieces))
    codes = np.concatenate([part[0] for part in parts])
    scales = np.concatenate([part[1] for part in parts])
    zeros = np.concatenate([part[2] for part in parts])
    return Blocks(
        scheme.bits,
        scheme.block_size,
        pack(codes.reshape(n, -1), scheme.bits, scheme.block_size),
        scales.astype(np.float16).reshape(n, -1),
        zeros.reshape(n, -1) if scheme.asymmetric else None,
    )


def _fit_asymmetric(blocks: Float32, bits: int) -> Fit:
    """Codes (M, block), scales (M,), zero points (M,) for the best of the tried ranges."""
    top = np.float32((1 << bits) - 1)
    low = np.minimum(blocks.min(axis=1), 0)
    high = np.maximum(blocks.max(axis=1), 0)
    best = _Best(blocks, top)
    for shrink in SHRINKS:
        scale = half(np.maximum((high - low) * shrink / top, np.float32(1e-8)))
        best.offer(scale, np.clip(np.rint(-low * shrink / scale), 0, top))
    return best.refitted()


def _fit_symmetric(blocks: Float32, bits: int) -> Fit:
    """As `_fit_asymmetric`, zero point in the middle: the signed extreme maps to -2^(bits-1)."""
    top, middle = np.float32((1 << bits) - 1), np.float32(1 << (bits - 1))
    index = np.abs(blocks).argmax(axis=1)
    extreme = blocks[np.arange(len(blocks)), index]
    zero = np.full(len(blocks), middle, np.float32)
    best = _Best(blocks, top)
    for shrink in SHRINKS:
        scale = half(np.where(extreme == 0, np.float32(1e-8), -extreme * shrink / middle))
        best.offer(scale, zero)
    return best.refitted()


class _Best:
    """The grid of each block (M, block) with the least squared error among those offered."""

    def __init__(self, blocks: Float32, top: np.float32) -> None:
        self._blocks, self._top = blocks, top
        self._scale = np.ones(len(blocks), np.float32)
        self._zero = np.zeros(len(blocks), np.float32)
        self._error = np.full(len(blocks), np.inf, np.float32)

    def offer(self, scale: Float32, zero: Float32) -> None:
        """Grids (M,) to be kept where they are better."""
        centred = self._centred(scale, zero)
        centred *= scale[:, None]
        centred -= self._blocks
        error = np.einsum("mb,mb->m", centred, centred)
        better = error < self._error
        self._scale[better], self._zero[better] = scale[better], zero[better]
        self._error[better] = error[better]

    def refitted(self) -> Fit:
        """Least-squares scale for the best integers, kept where it really is better in float16."""
        blocks, scale, zero = self._blocks, self._scale, self._zero
        centred = self._centred(scale, zero)
        codes = (centred + zero[:, None]).astype(np.uint8)
        power = np.einsum("mb,mb->m", centred, centred)
        along = np.einsum("mb,mb->m", centred, blocks)
        fitted = half(np.where(power > 0, along / np.maximum(power, 1), scale))
        centred *= fitted[:, None]
        centred -= blocks
        better = (np.einsum("mb,mb->m", centred, centred) < self._error) & (fitted != 0)
        return codes, np.where(better, fitted, scale), zero.astype(np.uint8)

    def _centred(self, scale: Float32, zero: Float32) -> Float32:
        """Nearest integers (M, block) less their zero point."""
        codes: Float32 = self._blocks / scale[:, None]
        codes += zero[:, None]
        np.rint(codes, out=codes)
        np.clip(codes, 0, self._top, out=codes)
        codes -= zero[:, None]
        return codes


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
