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

# Of a row in memory at most one part in so many is empty.
EMPTY_SHARE = 8


def treat(
    weight: Weight, treatment: Treatment, hessian: Float32 | None = None, tails: bool = False
) -> Weight:
    """The weight as the recipe wants it stored; Incompatible when its width does not allow it.

    `hessian` (K, K) is what calibration found for its inputs, None where nothing is known; `tails`
    as in `fit`.
    """
    match treatment:
        case Integer():
            fitting = fit(treatment, weight.shape[1], tails)
            if treatment.method == "rtn" and not treatment.minima:
                return rtn.quantize(to_float32(weight), fitting)
            known = hessian if treatment.method == "gptq" else None
            return gptq.quantize(to_float32(weight), known, fitting)
        case Float(dtype):
            return Dense(weight.shape, dtype, lambda: to_float32(weight))
        case _:
            return weight


def fit(scheme: Integer, inner: int, tails: bool = False) -> Integer:
    """`scheme` with the largest block up to its own that `suits`; Incompatible if none does."""
    known = [size for size in BLOCK_SIZES if scheme.bits > 2 or size >= SMALLEST_2_BIT_BLOCK]
    wanted = [replace(scheme, block_size=size) for size in known if size <= scheme.block_size]
    found = [one for one in wanted if suits(one, inner, tails)]
    if not found:
        what, instead = ("block of 2 bits", "int4") if scheme.bits == 2 else ("block", "fp16")
        raise Incompatible(
            f"its width {inner} is no multiple of {known[0]}, the smallest {what}; "
            f"use --precision {instead}"
        )
    return found[-1]


def suits(scheme: Integer, inner: int, tails: bool) -> bool:
    """Whether rows of `inner` weights fill the blocks of `scheme`, or, where the matrix may have
    `tails`, leave at most an eighth of `inner` empty: the last block takes memory and time as a
    whole, and a larger block saves both (from 64 to 128 weights: 6 to 10 % of decoding at a width
    of 576, which leaves 64 empty).

    Only a product has tails: tables and experts have no operator for them, and the sums that minima
    need have none either.
    """
    size, least = scheme.block_size, BLOCK_SIZES[0]
    if inner % size == 0:
        return True
    fills = inner > size and inner % least == 0 and EMPTY_SHARE * (-inner % size) <= inner
    return tails and not scheme.minima and fills
