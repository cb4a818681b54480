"""The safetensors container: a JSON table of contents and one buffer, every number checked.

    8 bytes  length of the header, little-endian
    header   JSON: name → {"dtype", "shape", "data_offsets": [begin, end]}
    buffer   the tensors, without holes

Source: the format section of huggingface/safetensors' README. Its package is not used: through
numpy it cannot give out bfloat16.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.folder import parse_object
from edgellm_export.checkpoint.mapped import AGAIN, map_file, shown

# 100,000 tensors have 12 MB; the format's own limit of 100 MB could cost gigabytes once parsed.
HEADER_LIMIT_BYTES = 16 << 20
DIMENSIONS_LIMIT = 8
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: `offset` counts from the start of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    path: Path
    tensors: Mapping[str, Tensor]
    data: mmap.mmap

    def raw(self, tensor: Tensor) -> NDArray[np.uint8]:
        """The tensor's bytes, not copied."""
        return np.frombuffer(self.data, np.uint8, tensor.size_bytes, tensor.offset)


def read(path: Path) -> SafetensorsFile:
    """The file's table of contents; Corrupt or Incompatible says what is wrong with it."""
    data = map_file(path, 10, "safetensors")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(HEADER_LIMIT_BYTES, len(data) - 8):
        _fail(path, f"its header claims {length} bytes of a file of {len(data)}")
    if data[8:9] != b"{":
        _fail(path, f"its header begins with {data[8:9]!r}, not a JSON object")
    header = parse_object(data[8 : 8 + length], path)
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    reached = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != reached:
            _fail(path, f"tensor {shown(tensor.name)} overlaps another or leaves a hole")
        reached += tensor.size_bytes
    if reached != len(data):
        _fail(path, f"its tensors end at byte {reached} and the file has {len(data)}")
    return SafetensorsFile(path, {tensor.name: tensor for tensor in tensors}, data)


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"the entry of tensor {shown(name)} is {shown(entry)}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _whole(shape) or len(shape) > DIMENSIONS_LIMIT:
        _fail(path, f"tensor {shown(name)} has the shape {shown(shape)}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _fail(path, f"tensor {shown(name)} has the offsets {shown(offsets)}")
    item_bytes = _ITEM_BYTES.get(kind) if isinstance(kind, str) else None
    if item_bytes is None:
        raise Incompatible(
            f"{path}: tensor {shown(name)} has dtype {shown(kind)}, which is not read; "
            "use float weights or a GGUF file"
        )
    size = offsets[1] - offsets[0]
    if math.prod(shape) * item_bytes != size:
        _fail(path, f"tensor {shown(name)} of shape {shown(shape)} and {kind} has {size} bytes")
    return Tensor(name, kind, tuple(shape), start + offsets[0], size)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 62 for value in values
    )


def _fail(path: Path, what: str) -> NoReturn:
    raise Corrupt(f"{path} is damaged: {what}; {AGAIN}")
