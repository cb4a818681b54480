"""Reading back what a finished data file holds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm_export.data import DataFile, Stored, StoredSteps
from edgellm_export.linear import Matrix
from edgellm_export.store import Place
from edgellm_export.weights import (
    Blocks,
    Dense,
    Float32,
    Scales,
    Steps,
    Weight,
    padded,
    to_float32,
    unpack,
)


class StoredWeights:
    """The weights of a finished data file by their checkpoint names, as float32.

    Read, not mapped: each array's memory goes when the array does.
    """

    def __init__(self, data: DataFile, places: dict[str, Place]) -> None:
        self._path = data.path
        self._places = places

    def __call__(self, name: str) -> Float32:
        """(N, K) or (N,), dequantized from the bytes on disk; nothing is `added`."""
        values = to_float32(self.weight(name))
        added = self._places[name].added
        return values - np.float32(added) if added else values

    def weight(self, name: str) -> Weight:
        """As it is stored, `added` included."""
        place = self._places[name]
        rows = slice(place.start, place.stop, place.step)
        if isinstance(place.stored, Stored):
            return _dense(self._read(place.stored)[rows])
        m = place.stored
        if m.scales is None:
            return _dense(self._read(m.values)[rows])
        zeros = None
        if m.zero_points is not None:
            zeros = unpack(self._read(m.zero_points)[rows], m.bits)[:, : m.scales.shape[1]]
        return Blocks(
            m.bits,
            m.block_size,
            self._packed(m)[rows],
            self._scales(m.scales)[rows],
            zeros,
            None if m.minima is None else self._scales(m.minima)[rows],
            m.lowest,
            m.shape[1] if m.tail else 0,
        )

    def _packed(self, m: Matrix) -> NDArray[np.uint8]:
        """All blocks, a tail filled with zeros."""
        if m.tail is None:
            return self._read(m.values)
        last = padded(self._read(m.tail), m.values.shape[2])
        return np.concatenate([self._read(m.values), last], axis=1)

    def _scales(self, stored: Stored | StoredSteps) -> Scales:
        if isinstance(stored, StoredSteps):
            return Steps(self._read(stored.coarse), self._read(stored.steps))
        return self._read(stored)

    def _read(self, stored: Stored) -> np.ndarray:
        count = stored.nbytes // stored.dtype.itemsize
        flat = np.fromfile(self._path, stored.dtype, count, offset=stored.offset)
        return flat.reshape(stored.shape)


def _dense(values: np.ndarray) -> Dense:
    return Dense(values.shape, str(values.dtype), lambda: values.astype(np.float32))
