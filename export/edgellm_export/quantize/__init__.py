"""Weight quantization in numpy: no torch, no calibration data needed."""

from __future__ import annotations

from dataclasses import replace

from edgellm.errors import Incompatible
from edgellm_export.quantize.rtn import quantize
from edgellm_export.recipe import BLOCK_SIZES, Float, Integer, Treatment
from edgellm_export.weights import Dense, Weight, to_float32


def treat(weight: Weight, treatment: Treatment) -> Weight:
    """The weight as the recipe wants it stored; Incompatible when its width does not allow it."""
    match treatment:
        case Integer():
            return quantize(to_float32(weight), _fitting(treatment, weight.shape[1]))
        case Float(dtype):
            return Dense(weight.shape, dtype, lambda: to_float32(weight))
        case _:
            return weight


def _fitting(scheme: Integer, inner: int) -> Integer:
    sizes = [size for size in BLOCK_SIZES if size <= scheme.block_size and inner % size == 0]
    if not sizes:
        raise Incompatible(
            f"its width {inner} is no multiple of {BLOCK_SIZES[0]}, the smallest block; "
            "use --precision fp16"
        )
    return replace(scheme, block_size=max(sizes))
