"""Weight quantization in numpy: no torch, no calibration data needed."""

from __future__ import annotations

from edgellm.errors import Incompatible
from edgellm_export.quantize.rtn import quantize
from edgellm_export.recipe import Float, Integer, Treatment
from edgellm_export.weights import Dense, Weight, to_float32


def treat(weight: Weight, treatment: Treatment) -> Weight:
    """The weight as the recipe wants it stored; Incompatible when its width does not allow it."""
    match treatment:
        case Integer(_, block_size):
            inner = weight.shape[1]
            if inner % block_size:
                raise Incompatible(
                    f"its width {inner} is no multiple of the block size {block_size}; "
                    "use --precision fp16"
                )
            return quantize(to_float32(weight), treatment)
        case Float(dtype):
            return Dense(weight.shape, dtype, lambda: to_float32(weight))
        case _:
            return weight
