"""Weight quantization in numpy: no torch.

rtn    round to nearest, no data needed       grids, gptq   calibrated, on statistics of the inputs
capture   those statistics                    selftext      text in the model's own words
sensitivity   what rounding each matrix costs  budget   bits for each matrix within a size
calibrate   all of it, kept for a rerun
"""

from __future__ import annotations

from dataclasses import replace

from edgellm.errors import Incompatible
from edgellm_export.quantize import gptq, rtn
from edgellm_export.recipe import BLOCK_SIZES, SMALLEST_2_BIT_BLOCK, Float, Integer, Treatment
from edgellm_export.weights import Dense, Float32, Weight, to_float32


def treat(weight: Weight, treatment: Treatment, hessian: Float32 | None = None) -> Weight:
    """The weight as the recipe wants it stored; Incompatible when its width does not allow it.

    `hessian` (K, K) is what calibration found for its inputs, None where nothing is known.
    """
    match treatment:
        case Integer():
            fitting = fit(treatment, weight.shape[1])
            if treatment.method == "rtn" and not treatment.minima:
                return rtn.quantize(to_float32(weight), fitting)
            known = hessian if treatment.method == "gptq" else None
            return gptq.quantize(to_float32(weight), known, fitting)
        case Float(dtype):
            return Dense(weight.shape, dtype, lambda: to_float32(weight))
        case _:
            return weight


def fit(scheme: Integer, inner: int) -> Integer:
    """`scheme` with the largest block up to its own that divides `inner`; Incompatible if none."""
    known = [size for size in BLOCK_SIZES if scheme.bits > 2 or size >= SMALLEST_2_BIT_BLOCK]
    sizes = [size for size in known if size <= scheme.block_size and inner % size == 0]
    if not sizes:
        what, instead = ("block of 2 bits", "int4") if scheme.bits == 2 else ("block", "fp16")
        raise Incompatible(
            f"its width {inner} is no multiple of {known[0]}, the smallest {what}; "
            f"use --precision {instead}"
        )
    return replace(scheme, block_size=max(sizes))
