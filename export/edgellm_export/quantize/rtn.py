"""Round to nearest on a searched grid.

For each block the grid (scale, zero point) is chosen by trying shrunken ranges, then the scale is
refitted by least squares with the integers held fixed. Against the plain min/max grid of 4 bits
this takes 5 % of the squared error away on Gaussian weights when asymmetric, 9 % when symmetric.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible
from edgellm_export.recipe import Integer
from edgellm_export.weights import FLOAT16_MAX, Blocks, Float32, pack

# Fractions of the full range that are tried; below 0.75 the clipped tails always cost more.
SHRINKS = np.linspace(1.0, 0.75, 11, dtype=np.float32)
Fit = tuple[NDArray[np.uint8], Float32, NDArray[np.uint8]]

# Rows quantized at once: bounds the temporaries to a few tens of MB whatever the matrix.
CHUNK_VALUES = 1 << 21


def quantize(weight: Float32, scheme: Integer) -> Blocks:
    """`weight` (N, K) in blocks; K that is not a multiple of the block is padded with zeros."""
    n, k = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -k % scheme.block_size)))
    blocks = padded.reshape(-1, scheme.block_size)
    fit = _fit_asymmetric if scheme.asymmetric else _fit_symmetric
    step = max(1, CHUNK_VALUES // scheme.block_size)
    parts = [fit(blocks[i : i + step], scheme.bits) for i in range(0, len(blocks), step)]
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
    best: Fit | None = None
    best_error = np.full(len(blocks), np.inf, np.float32)
    for shrink in SHRINKS:
        scale = half(np.maximum((high - low) * shrink / top, np.float32(1e-8)))
        zero = np.clip(np.rint(-low * shrink / scale), 0, top)
        best, best_error = _keep_better(blocks, scale, zero, top, best, best_error)
    return _refit(blocks, best, best_error, top)


def _fit_symmetric(blocks: Float32, bits: int) -> Fit:
    """As `_fit_asymmetric`, zero point in the middle: the signed extreme maps to -2^(bits-1)."""
    top, middle = np.float32((1 << bits) - 1), np.float32(1 << (bits - 1))
    index = np.abs(blocks).argmax(axis=1)
    extreme = blocks[np.arange(len(blocks)), index]
    zero = np.full(len(blocks), middle, np.float32)
    best: Fit | None = None
    best_error = np.full(len(blocks), np.inf, np.float32)
    for shrink in SHRINKS:
        scale = half(np.where(extreme == 0, np.float32(1e-8), -extreme * shrink / middle))
        best, best_error = _keep_better(blocks, scale, zero, top, best, best_error)
    return _refit(blocks, best, best_error, top)


def _keep_better(
    blocks: Float32,
    scale: Float32,
    zero: Float32,
    top: np.float32,
    best: Fit | None,
    best_error: Float32,
) -> tuple[Fit, Float32]:
    codes = np.clip(np.rint(blocks / scale[:, None] + zero[:, None]), 0, top)
    error = (((codes - zero[:, None]) * scale[:, None] - blocks) ** 2).sum(axis=1)
    new = (codes.astype(np.uint8), scale, zero.astype(np.uint8))
    if best is None:
        return new, error
    better = error < best_error
    best[0][better] = new[0][better]
    best[1][better] = new[1][better]
    best[2][better] = new[2][better]
    return best, np.minimum(error, best_error)


def _refit(blocks: Float32, best: Fit | None, best_error: Float32, top: np.float32) -> Fit:
    """Least-squares scale for the chosen integers, kept where it really is better in float16."""
    if best is None:
        raise ValueError("no range was tried")
    codes, scale, zero = best
    centred = codes.astype(np.float32) - zero[:, None]
    power = (centred**2).sum(axis=1)
    fitted = half(np.where(power > 0, (centred * blocks).sum(axis=1) / np.maximum(power, 1), scale))
    error = ((centred * fitted[:, None] - blocks) ** 2).sum(axis=1)
    return codes, np.where((error < best_error) & (fitted != 0), fitted, scale), zero


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
