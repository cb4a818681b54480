"""Weight quantization in numpy: no torch.

rtn    round to nearest, no data needed       grids, gptq   calibrated, on statistics of the inputs
capture   those statistics                    selftext      text in the model's own words
calibrate   all of it, kept for a rerun
"""

from __future__ import annotations

from edgellm.errors import Incompatible
from edgellm_export.quantize import gptq, rtn
from edgellm_export.recipe import Float, Integer, Treatment
from edgellm_export.weights import Dense, Float32, Weight, to_float32


def treat(weight: Weight, treatment: Treatment, hessian: Float32 | None = None) -> Weight:
    """The weight as the recipe wants it stored; Incompatible when its width does not allow it.

    `hessian` (K, K) is what calibration found for its inputs, None where nothing is known.
    """
    match treatment:
        case Integer(block_size=block_size):
            inner = weight.shape[1]
            if inner % block_size:
                raise Incompatible(
                    f"its width {inner} is no multiple of the block size {block_size}; "
                    "use --precision fp16"
                )
            values = to_float32(weight)
            if treatment.method == "rtn" and not treatment.minima:
                return rtn.quantize(values, treatment)
            return gptq.quantize(values, hessian, treatment)
        case Float(dtype):
            return Dense(weight.shape, dtype, lambda: to_float32(weight))
        case _:
            return weight
