"""Tensor bytes of GGUF as weights: blocks bit for bit where MatMulNBits can hold them exactly.

gguf_formats.py has the table of these types; all others are dequantized to float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible
from edgellm_export.checkpoint.gguf_file import GgufFile, Tensor
from edgellm_export.checkpoint.gguf_formats import FORMATS, Format
from edgellm_export.checkpoint.mapped import all_finite, release, shown, widen_bfloat16
from edgellm_export.weights import Blocks, Dense, Float32, Steps, Weight, concatenate

# gguf's dequantize needs twice its output; pieces keep that small beside a large embedding.
ROWS_AT_ONCE = 1024
DENSE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load(file: GgufFile, tensor: Tensor) -> Weight:
    """The tensor as Blocks (matrices of FORMATS) or else as Dense, read when asked for."""
    if _has_blocks(tensor):
        blocks = _blocks(file, tensor, FORMATS[tensor.kind])
        release(file.data, tensor.offset, tensor.size_bytes)
        for scales in (blocks.scales, blocks.minima):
            if scales is not None:
                numbers = scales.coarse if isinstance(scales, Steps) else scales
                all_finite(file.path, tensor.name, numbers)
        return blocks

    if tensor.kind not in DENSE:
        _expanded(
            np.zeros((1, tensor.size_bytes // math.prod(tensor.shape[:-1])), np.uint8), tensor
        )

    def read() -> Float32:
        values = _floats(file.raw(tensor), tensor)
        release(file.data, tensor.offset, tensor.size_bytes)
        all_finite(file.path, tensor.name, values)
        return values

    return Dense(tensor.shape, DENSE.get(tensor.kind, "float32"), read)


def is_exact(tensor: Tensor) -> bool:
    """Whether `load` keeps the tensor's own numbers instead of expanding them to float32."""
    return tensor.kind in DENSE or _has_blocks(tensor)


def _has_blocks(tensor: Tensor) -> bool:
    return tensor.kind in FORMATS and len(tensor.shape) == 2


def bits_a_weight(tensor: Tensor) -> tuple[float, float]:
    """What a matrix of FORMATS takes in the file and once stored, scales included."""
    size_bits = 8 * tensor.size_bytes / math.prod(tensor.shape)
    form = FORMATS[tensor.kind]
    one = form.unpack(np.zeros((1, 1, round(size_bits * form.weights / 8)), np.uint8))
    parts = (one.packed, one.scales, one.minima)
    return size_bits, 8 * sum(part.nbytes for part in parts if part is not None) / form.weights


def _blocks(file: GgufFile, tensor: Tensor, form: Format) -> Blocks:
    rows = file.raw(tensor).reshape(tensor.shape[0], tensor.shape[1] // form.weights, -1)
    # Broken scales are found by the caller, who knows where they are.
    with np.errstate(invalid="ignore"):
        return concatenate(
            [form.unpack(rows[i : i + ROWS_AT_ONCE]) for i in range(0, len(rows), ROWS_AT_ONCE)]
        )


def _floats(raw: NDArray[np.uint8], tensor: Tensor) -> Float32:
    if tensor.kind == "F32":
        return raw.view("<f4").astype(np.float32).reshape(tensor.shape)
    if tensor.kind == "F16":
        return raw.view("<f2").astype(np.float32).reshape(tensor.shape)
    if tensor.kind == "BF16":
        return widen_bfloat16(raw).reshape(tensor.shape)
    rows = raw.reshape(math.prod(tensor.shape[:-1]), -1)
    values = np.empty((rows.shape[0], tensor.shape[-1]), np.float32)
    for start in range(0, rows.shape[0], ROWS_AT_ONCE):
        values[start : start + ROWS_AT_ONCE] = _expanded(rows[start : start + ROWS_AT_ONCE], tensor)
    return values.reshape(tensor.shape)


def _expanded(rows: NDArray[np.uint8], tensor: Tensor) -> Float32:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # Broken scales are found by the caller, who knows where they are.
    with np.errstate(all="ignore"):
        try:
            values: Float32 = dequantize(rows, GGMLQuantizationType[tensor.kind])
        except NotImplementedError:
            raise Incompatible(
                f"tensor {shown(tensor.name)} has type {tensor.kind}, which holds no weights; "
                "use another quantization of this model"
            ) from None
    return values
