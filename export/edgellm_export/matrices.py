"""One weight into the data file, as the arrays that a graph's product reads."""

from __future__ import annotations

import numpy as np

from edgellm.errors import Incompatible
from edgellm_export.data import DataFile, Stored, StoredSteps
from edgellm_export.linear import Matrix
from edgellm_export.weights import FLOAT16_MAX, Dense, Float32, Scales, Steps, Weight, pack, padded


def store_matrix(data: DataFile, name: str, weight: Weight) -> Matrix:
    """`weight`, written. Blocks keep their bytes, but for those that mean nothing behind the end of
    a row; scales and minima keep their precision."""
    if isinstance(weight, Dense):
        out, inner = weight.shape
        values = weight.numpy()
        if weight.dtype == "float16":
            values = _float16(values)
        return Matrix((out, inner), data.append(name, values))
    zeros, minima = weight.zero_points, weight.minima
    full, rest = divmod(weight.shape[1], weight.block_size)
    whole, last = np.split(weight.packed, [full], axis=1)
    return Matrix(
        weight.shape,
        data.append(f"{name}.blocks", whole),
        weight.bits,
        weight.block_size,
        _store_scales(data, f"{name}.scales", weight.scales),
        None if zeros is None else data.append(f"{name}.zeros", _pack_rows(zeros, weight.bits)),
        None if minima is None else _store_scales(data, f"{name}.minima", minima),
        weight.lowest,
        data.append(f"{name}.tail", last[..., : rest * weight.bits // 8]) if rest else None,
    )


def _store_scales(data: DataFile, name: str, scales: Scales) -> Stored | StoredSteps:
    if isinstance(scales, Steps):
        coarse = data.append(f"{name}.coarse", scales.coarse)
        return StoredSteps(coarse, data.append(f"{name}.steps", scales.steps))
    return data.append(name, scales)


def _float16(values: Float32) -> np.ndarray:
    largest = max(-float(values.min()), float(values.max()))
    if largest > FLOAT16_MAX:
        raise Incompatible(
            f"it holds {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}; use --precision fp32"
        )
    return values.astype(np.float16)


def _pack_rows(zero_points: np.ndarray, bits: int) -> np.ndarray:
    """(N, blocks) to (N, ceil(blocks * bits / 8)), low bits first."""
    filled = padded(zero_points, 8 // bits)
    return pack(filled, bits, filled.shape[1])[:, 0]
