"""Tensor bytes of GGUF as weights: blocks bit for bit where MatMulNBits has an equal format.

    Q4_0  scale f16, 16 bytes                w = scale * (q - 8)
    Q4_1  scale f16, minimum f16, 16 bytes   w = scale * q + minimum
    Q8_0  scale f16, 32 signed bytes         w = scale * q

A byte of the 4-bit formats holds weights i and i + 16 of its block; ours holds neighbours.
Source: block_q4_0, block_q4_1, block_q8_0 in ggml-common.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible
from edgellm_export.checkpoint.gguf_file import GgufFile, Tensor
from edgellm_export.checkpoint.mapped import all_finite, shown, widen_bfloat16
from edgellm_export.weights import Blocks, Dense, Float32, Weight

BLOCK = 32
# gguf's dequantize needs twice its output; pieces keep that small beside a large embedding.
ROWS_AT_ONCE = 1024
DENSE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load(file: GgufFile, tensor: Tensor) -> Weight:
    """The tensor as Blocks (Q4_0, Q4_1, Q8_0 matrices) or else as Dense, read when asked for."""
    unpack = _EXACT.get(tensor.kind) if len(tensor.shape) == 2 else None
    if unpack is not None:
        blocks = unpack(file.raw(tensor).reshape(tensor.shape[0], tensor.shape[1] // BLOCK, -1))
        all_finite(file.path, tensor.name, blocks.scales)
        if blocks.minima is not None:
            all_finite(file.path, tensor.name, blocks.minima)
        return blocks

    if tensor.kind not in DENSE:
        _expanded(
            np.zeros((1, tensor.size_bytes // math.prod(tensor.shape[:-1])), np.uint8), tensor
        )

    def read() -> Float32:
        values = _floats(file.raw(tensor), tensor)
        all_finite(file.path, tensor.name, values)
        return values

    return Dense(tensor.shape, DENSE.get(tensor.kind, "float32"), read)


def is_exact(tensor: Tensor) -> bool:
    """Whether `load` keeps the tensor's own numbers instead of expanding them to float32."""
    return tensor.kind in DENSE or tensor.kind in _EXACT


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


def _q4_0(raw: NDArray[np.uint8]) -> Blocks:
    return Blocks(4, BLOCK, _neighbours(raw[..., 2:]), _halves(raw[..., :2]))


def _q4_1(raw: NDArray[np.uint8]) -> Blocks:
    packed = _neighbours(raw[..., 4:])
    return Blocks(4, BLOCK, packed, _halves(raw[..., :2]), minima=_halves(raw[..., 2:4]))


def _q8_0(raw: NDArray[np.uint8]) -> Blocks:
    # Adding 128 to a signed byte is flipping its top bit; 128 is the middle that Blocks assumes.
    return Blocks(8, BLOCK, raw[..., 2:] ^ np.uint8(0x80), _halves(raw[..., :2]))


_EXACT: dict[str, Callable[[NDArray[np.uint8]], Blocks]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
}


def _halves(raw: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float16, copy=False)


def _neighbours(halves: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes (i, i + 16) to bytes (2j, 2j + 1), the order of `weights.pack`."""
    even, odd = halves[..., 0::2], halves[..., 1::2]
    packed = np.empty_like(halves, order="C")
    packed[..., :8] = (even & np.uint8(0x0F)) | (odd << np.uint8(4))
    packed[..., 8:] = (even >> np.uint8(4)) | (odd & np.uint8(0xF0))
    return packed
