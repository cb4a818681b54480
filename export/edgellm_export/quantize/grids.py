"""Grids for calibrated quantization: what a block's integers stand for, chosen by weighted search.

A block is offset + scale * q with q in 0…2^bits - 1. The three kinds differ in what the offset may
be: symmetric (the middle is zero), an integer zero point, or a minimum of its own in float16.
Shapes: N output features, K inputs, G blocks of a row, B block size, M blocks of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgellm_export.quantize.rtn import half
from edgellm_export.recipe import Integer
from edgellm_export.weights import Blocks, Float32, pack, padded

# Fractions of the full range that are tried. Weighted by importance a tail may be worth little.
SHRINKS = np.linspace(1.0, 0.6, 11, dtype=np.float32)
# Values worked on at once: they stay in a core's cache.
CHUNK_VALUES = 1 << 17
SMALLEST = np.float32(1e-8)


@dataclass(frozen=True, slots=True)
class Grid:
    """scale (N, G) and offset (N, G), as the file will hold them, the scheme they are of, and K:
    the last block may have fewer weights than the others."""

    scheme: Integer
    scale: Float32
    offset: Float32
    width: int

    @property
    def top(self) -> float:
        """The largest integer."""
        return float((1 << self.scheme.bits) - 1)

    def wide(self, values: Float32) -> Float32:
        """(N, G) spread over the columns: (N, K)."""
        spread: Float32 = np.repeat(values, self.scheme.block_size, axis=1)
        return spread[:, : self.width]

    def zeros(self) -> Float32:
        """Integer zero points (N, G)."""
        zeros: Float32 = np.rint(-self.offset / self.scale)
        return zeros

    def dequantize(self, codes: Float32) -> Float32:
        """(N, K) values of the integers `codes` (N, K)."""
        return codes * self.wide(self.scale) + self.wide(self.offset)

    def blocks(self, codes: Float32) -> Blocks:
        """The stored form of `codes` (N, K)."""
        bits, size = self.scheme.bits, self.scheme.block_size
        return Blocks(
            bits,
            size,
            pack(codes.astype(np.uint8), bits, size),
            self.scale.astype(np.float16),
            self.zeros().astype(np.uint8) if self.scheme.asymmetric else None,
            self.offset.astype(np.float16) if self.scheme.minima else None,
            width=self.width if self.width % size else 0,
        )


def rounded(weight: Float32, grid: Grid) -> Float32:
    """The nearest integers of `grid`: (N, K)."""
    codes = np.rint((weight - grid.wide(grid.offset)) / grid.wide(grid.scale))
    clipped: Float32 = np.clip(codes, 0, grid.top)
    return clipped


def search(weight: Float32, importance: Float32, scheme: Integer) -> Grid:
    """The grid of each block of `weight` (N, K) with the least error weighted by `importance` (K,).

    Ranges are shrunk step by step; each time the integers are rounded and the scale (and the
    minimum, where it is free) refitted by weighted least squares. A last block that is not full is
    filled with its last weight, which changes no range, at no importance.
    """
    n, k = weight.shape
    size = scheme.block_size
    rows = max(1, CHUNK_VALUES // k)
    importance = importance / max(float(importance.mean()), 1e-30) + np.float32(1e-6)
    spread = padded(importance, size).reshape(-1, size)
    rest = ((0, 0), (0, -k % size))
    parts = []
    for start in range(0, n, rows):
        part = weight[start : start + rows]
        blocks = (np.pad(part, rest, "edge") if k % size else part).reshape(-1, size)
        parts.append(_best(blocks, np.tile(spread, (len(part), 1)), scheme))
    scale = np.concatenate([part[0] for part in parts]).reshape(n, -1)
    offset = np.concatenate([part[1] for part in parts]).reshape(n, -1)
    return Grid(scheme, scale, offset, k)


def _best(blocks: Float32, importance: Float32, scheme: Integer) -> tuple[Float32, Float32]:
    """scale (M,), offset (M,) of the candidate with the least error."""
    best_error = np.full(len(blocks), np.inf, np.float32)
    best_scale = np.ones(len(blocks), np.float32)
    best_offset = np.zeros(len(blocks), np.float32)
    total = importance.sum(axis=1)
    for scale, offset in _candidates(blocks, scheme):
        for refit in (True, False):
            codes = _round(blocks, scale, offset, scheme)
            if refit:
                scale, offset = _fit(blocks, codes, importance, total, (scale, offset), scheme)
        codes = _round(blocks, scale, offset, scheme)
        codes *= scale[:, None]
        codes += offset[:, None]
        codes -= blocks
        codes *= codes
        error = np.einsum("mb,mb->m", codes, importance)
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better] = scale[better]
        best_offset[better] = offset[better]
    return best_scale, best_offset


def _candidates(blocks: Float32, scheme: Integer) -> Iterator[tuple[Float32, Float32]]:
    """(scale, offset) to start from."""
    top = np.float32((1 << scheme.bits) - 1)
    middle = np.float32(1 << (scheme.bits - 1))
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    if scheme.minima:
        centre, width = (low + high) / 2, (high - low)
        for shrink in SHRINKS:
            scale = half(np.maximum(width * shrink / top, SMALLEST))
            yield scale, half(centre - scale * top / 2)
        return
    if not scheme.asymmetric:
        extreme = np.where(high > -low, high, low)
        for shrink in SHRINKS:
            scale = half(np.where(extreme == 0, SMALLEST, -extreme * shrink / middle))
            yield scale, -scale * middle
        return
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    for shrink in SHRINKS:
        scale = half(np.maximum((high - low) * shrink / top, SMALLEST))
        zero = np.clip(np.rint(-(low + high) / 2 / scale + top / 2), 0, top)
        yield scale, -scale * zero


def _round(blocks: Float32, scale: Float32, offset: Float32, scheme: Integer) -> Float32:
    top = np.float32((1 << scheme.bits) - 1)
    codes: Float32 = blocks - offset[:, None]
    codes *= (1 / scale)[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, top, out=codes)
    return codes


def _fit(
    blocks: Float32,
    codes: Float32,
    importance: Float32,
    total: Float32,
    start: tuple[Float32, Float32],
    scheme: Integer,
) -> tuple[Float32, Float32]:
    """Weighted least squares for the integers held fixed, rounded to float16."""
    scale, offset = start
    if scheme.minima:
        sq = np.einsum("mb,mb->m", codes, importance)
        weighted = importance * blocks
        sw = weighted.sum(axis=1)
        sqw = np.einsum("mb,mb->m", codes, weighted)
        sqq = np.einsum("mb,mb,mb->m", codes, codes, importance)
        below = total * sqq - sq * sq
        ok = below > 1e-6 * total * sqq
        fitted = (total * sqw - sq * sw) / np.where(ok, below, 1)
        scale = half(np.where(ok & (fitted > SMALLEST), fitted, scale))
        return scale, half((sw - scale * sq) / total)
    zero = -offset / scale
    centred = codes - zero[:, None]
    power = np.einsum("mb,mb,mb->m", centred, centred, importance)
    fitted = np.einsum("mb,mb,mb->m", centred, blocks, importance) / np.maximum(power, SMALLEST)
    scale = half(np.where((power > SMALLEST) & (fitted != 0), fitted, scale))
    return scale, -scale * np.rint(zero)
