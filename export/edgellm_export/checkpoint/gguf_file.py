"""The GGUF container: metadata and where each tensor lies, with every number checked before use.

    header    magic "GGUF", version, tensor count, metadata count
    metadata  key, type, value …
    tensors   name, dimensions, type, offset …
    data      starts at the next multiple of general.alignment

Source: docs/gguf.md in ggml. The constants come from the `gguf` package; its GGUFReader does not
serve here: it needs 2.8 s for a vocabulary of 49,152 (this reader 0.1 s, on a 2-core x86-64) and
counts through array lengths that a hostile file invents.
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
from edgellm_export.checkpoint.mapped import AGAIN, map_file, shown

HEADER_BYTES = 24
# Far above any real file (vocabularies reach 262,144, merges 600,000), far below what hurts.
METADATA_LIMIT_BYTES = 128 << 20
METADATA_LIMIT_KEYS = 1 << 16
METADATA_LIMIT_ELEMENTS = 1 << 22
TENSOR_LIMIT = 1 << 17
ALIGNMENT_LIMIT_BYTES = 1 << 16
DIMENSIONS_LIMIT = 4  # GGML_MAX_DIMS

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# Scalar value types by their number in the file (gguf.constants.GGUFValueType).
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("<u1"),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies. `shape` is in numpy order, so a linear layer is (N, K)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata values are str, int, float, bool or flat lists of these."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    data: mmap.mmap

    def raw(self, tensor: Tensor) -> NDArray[np.uint8]:
        """The tensor's bytes, not copied."""
        return np.frombuffer(self.data, np.uint8, tensor.size_bytes, tensor.offset)


def read(path: Path) -> GgufFile:
    """The file's table of contents; Corrupt or Incompatible says what is wrong with it."""
    data = map_file(path, HEADER_BYTES, "GGUF")
    cursor = _Cursor(path, data)
    tensor_count, key_count = _counts(cursor)
    metadata = _metadata(cursor, key_count)
    if metadata.get("split.count", 0) not in (0, 1):
        raise Incompatible(
            f"{path} is one part of {shown(metadata['split.count'])}; "
            "join them first with llama-gguf-split --merge"
        )
    tensors = _tensors(cursor, tensor_count, _alignment(cursor, metadata))
    return GgufFile(path, metadata, tensors, data)


class _Cursor:
    """Reads onwards through the header and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0
        self.end = min(len(data), METADATA_LIMIT_BYTES)
        self.elements_left = METADATA_LIMIT_ELEMENTS

    def fail(self, what: str) -> NoReturn:
        raise Corrupt(f"{self.path} is damaged: {what}; {AGAIN}")

    def take(self, size: int) -> int:
        """The position of the next `size` bytes, which are known to be there."""
        start = self.position
        if size > self.end - start:
            limit = "file" if self.end == len(self.data) else f"{METADATA_LIMIT_BYTES}-byte limit"
            self.fail(f"{size} bytes at {start} of the header pass the end of the {limit}")
        self.position = start + size
        return start

    def u32(self) -> int:
        return int(_U32.unpack_from(self.data, self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.data, self.take(8))[0])

    def string(self) -> str:
        size = self.u64()
        start = self.take(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError:
            self.fail(f"the text at byte {start} is not UTF-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        return self._scalars(kind, 1)[0]

    def _array(self) -> list[Any]:
        kind, count = self.u32(), self.u64()
        self.elements_left -= count
        if self.elements_left < 0:
            self.fail(f"an array of {count} values, more than a header may hold")
        if kind == _STRING:
            if count * 8 > self.end - self.position:
                self.fail(f"an array of {count} texts passes the end of the header")
            return [self.string() for _ in range(count)]
        if kind == _ARRAY:
            self.fail("an array inside an array, which no known key uses")
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            self.fail(f"unknown metadata type {kind} at byte {self.position}")
        start = self.take(count * dtype.itemsize)
        values = np.frombuffer(self.data, dtype, count, start)
        return list((values != 0 if kind == _BOOL else values).tolist())


def _counts(cursor: _Cursor) -> tuple[int, int]:
    path, magic = cursor.path, cursor.data[:4]
    cursor.take(4)
    if magic != b"GGUF":
        page = "; it looks like a saved web page" if magic.lstrip()[:1] == b"<" else ""
        raise Corrupt(f"{path} is not GGUF: it begins with {magic!r}{page}; {AGAIN}")
    version = cursor.u32()
    if version & 0xFFFF == 0:
        raise Incompatible(
            f"{path} is big-endian GGUF, which is not read; find a usual build of it"
        )
    if version not in (2, 3):
        raise Incompatible(f"{path} has GGUF version {version}; versions 2 and 3 are read")
    tensor_count, key_count = cursor.u64(), cursor.u64()
    if tensor_count > TENSOR_LIMIT or key_count > METADATA_LIMIT_KEYS:
        cursor.fail(f"it claims {tensor_count} tensors and {key_count} metadata keys")
    if tensor_count == 0:
        raise Incompatible(f"{path} holds no tensors, so it is no model; use the file with weights")
    return tensor_count, key_count


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            cursor.fail(f"the key {shown(key)} appears twice")
        metadata[key] = cursor.value(cursor.u32())
    return metadata


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= ALIGNMENT_LIMIT_BYTES or value & (value - 1):
        cursor.fail(f"general.alignment is {shown(value)}, not a power of two")
    return value


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Tensor]:
    entries = [_entry(cursor) for _ in range(count)]
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    reached = start
    for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
        tensor = _placed(cursor, name, shape, kind, start + offset)
        if offset % alignment or tensor.offset < reached:
            cursor.fail(f"tensor {shown(name)} at offset {offset} overlaps another or is unaligned")
        if name in tensors:
            cursor.fail(f"tensor {shown(name)} appears twice")
        reached = tensor.offset + tensor.size_bytes
        tensors[name] = tensor
    return tensors


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.string(), cursor.u32()
    if not 1 <= dimensions <= DIMENSIONS_LIMIT:
        cursor.fail(f"tensor {shown(name)} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.u64() for _ in range(dimensions)]))
    return name, shape, cursor.u32(), cursor.u64()


def _placed(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        quantization = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[quantization]
    except (ValueError, KeyError):
        raise Incompatible(
            f"{cursor.path}: tensor {shown(name)} has the unknown type {kind}; "
            "use another quantization"
        ) from None
    if 0 in shape or shape[-1] % block:
        cursor.fail(f"tensor {shown(name)} of shape {shape} does not divide into blocks of {block}")
    size = math.prod(shape) // block * block_bytes
    if offset + size > len(cursor.data):
        cursor.fail(
            f"tensor {shown(name)} needs bytes {offset} to {offset + size} "
            f"and the file has {len(cursor.data)}"
        )
    return Tensor(name, quantization.name, shape, offset, size)
