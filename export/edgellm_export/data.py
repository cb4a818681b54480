"""The weights file that all graphs of a bundle point into."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

# A cache line: enough for the kernels, which copy weights into their own layout at load.
ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in the data file: where it lies and what it is."""

    name: str
    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class StoredSteps:
    """Stored scales that are products of two arrays (see weights.Steps)."""

    coarse: Stored
    steps: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.steps.shape

    @property
    def nbytes(self) -> int:
        return self.coarse.nbytes + self.steps.nbytes


class DataFile:
    """An append-only file of arrays. `sha256` covers what has been written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO = path.open("xb")

    def append(self, name: str, array: NDArray[np.generic]) -> Stored:
        """The place of `array`, now written. Raises OSError when the disk is full."""
        self._write(b"\0" * (-self.bytes % ALIGNMENT_BYTES))
        stored = Stored(name, self.bytes, array.dtype, array.shape)
        self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return stored

    def rename(self, name: str) -> None:
        """The same file in its folder under another name, once it is closed."""
        self.path = self.path.rename(self.path.with_name(name))

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
