"""Moving a checkpoint's weights into the data file, and reading them back to check them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgellm.errors import Incompatible
from edgellm_export.blocks import Matrix
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.data import DataFile, Stored
from edgellm_export.quantize import treat
from edgellm_export.recipe import Keep, Recipe, Treatment
from edgellm_export.weights import (
    FLOAT16_MAX,
    Blocks,
    Dense,
    Float32,
    Weight,
    pack,
    stack,
    to_float32,
    unpack,
)

# Tensors that some checkpoints carry and no graph needs.
IGNORED = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint tensor went: rows start…stop of a matrix, or a whole vector."""

    stored: Matrix | Stored
    start: int
    stop: int
    treatment: Treatment


@dataclass
class WeightStore:
    """Writes weights to `data` as the recipe wants them and remembers where each one went.

    `statistics` has what calibration found for a matrix, by its name.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    data: DataFile
    statistics: Callable[[str], Float32 | None] | None = None
    places: dict[str, Place] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    parameters: int = 0

    def linear(self, name: str, *parts: str) -> Matrix:
        """One matrix from the output features of `parts`, treated as a layer."""
        return self._matrix(name, parts, self.recipe.linear)

    def outer(self, name: str, part: str) -> Matrix:
        """Embedding or lm_head: the recipe's `head` treatment."""
        return self._matrix(name, (part,), self.recipe.head)

    def vector(self, name: str) -> Stored:
        """A norm's weight, float32."""
        values = to_float32(self.checkpoint.weight(name))
        self.parameters += values.size
        stored = self.data.append(name, values)
        self.places[name] = Place(stored, 0, len(values), Keep())
        return stored

    def check_all_used(self, *also: str) -> None:
        """Incompatible names a tensor that no part of the graph has taken."""
        left = sorted(self.checkpoint.names() - self.places.keys() - set(also))
        left = [name for name in left if not name.endswith(IGNORED)]
        if left:
            raise Incompatible(
                f"{len(left)} tensors have no place in this architecture, first {left[0]!r}; "
                "the builder does not know this variant"
            )

    def _matrix(self, name: str, parts: tuple[str, ...], treatment: Treatment) -> Matrix:
        treatment = self.recipe.matrices.get(name, treatment)
        weights = [self.checkpoint.weight(f"{part}.weight") for part in parts]
        known = self.statistics(name) if self.statistics else None
        try:
            matrix = store_matrix(self.data, name, treat(stack(weights), treatment, known))
        except Incompatible as error:
            raise Incompatible(f"tensor {parts[0]}.weight: {error}") from error
        self.matrices[name] = matrix
        start = 0
        for part, weight in zip(parts, weights, strict=True):
            stop = start + weight.shape[0]
            self.places[f"{part}.weight"] = Place(matrix, start, stop, treatment)
            start = stop
        self.parameters += matrix.shape[0] * matrix.shape[1]
        return matrix


def store_matrix(data: DataFile, name: str, weight: Weight) -> Matrix:
    """`weight`, written. Blocks keep their bytes; scales and minima keep their precision."""
    if isinstance(weight, Dense):
        out, inner = weight.shape
        values = weight.numpy()
        if weight.dtype == "float16":
            values = _float16(values)
        return Matrix((out, inner), data.append(name, values))
    zeros, minima = weight.zero_points, weight.minima
    return Matrix(
        weight.shape,
        data.append(f"{name}.blocks", weight.packed),
        weight.bits,
        weight.block_size,
        data.append(f"{name}.scales", weight.scales),
        None if zeros is None else data.append(f"{name}.zeros", _pack_rows(zeros, weight.bits)),
        None if minima is None else data.append(f"{name}.minima", minima),
    )


def _float16(values: Float32) -> np.ndarray:
    largest = max(-float(values.min()), float(values.max()))
    if largest > FLOAT16_MAX:
        raise Incompatible(
            f"it holds {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}; use --precision fp32"
        )
    return values.astype(np.float16)


def _pack_rows(zero_points: np.ndarray, bits: int) -> np.ndarray:
    """(N, blocks) to (N, ceil(blocks * bits / 8)), low bits first."""
    padded = np.pad(zero_points, ((0, 0), (0, -zero_points.shape[1] % (8 // bits))))
    return pack(padded, bits, padded.shape[1])[:, 0]


class StoredWeights:
    """The weights of a finished data file by their checkpoint names, as float32.

    Read, not mapped: each array's memory goes when the array does.
    """

    def __init__(self, data: DataFile, places: dict[str, Place]) -> None:
        self._path = data.path
        self._places = places

    def __call__(self, name: str) -> Float32:
        """(N, K) or (N,), dequantized from the bytes on disk."""
        return to_float32(self.weight(name))

    def weight(self, name: str) -> Weight:
        place = self._places[name]
        rows = slice(place.start, place.stop)
        if isinstance(place.stored, Stored):
            return _dense(self._read(place.stored))
        m = place.stored
        if m.scales is None:
            return _dense(self._read(m.values)[rows])
        zeros = None
        if m.zero_points is not None:
            zeros = unpack(self._read(m.zero_points)[rows], m.bits)[:, : m.scales.shape[1]]
        return Blocks(
            m.bits,
            m.block_size,
            self._read(m.values)[rows],
            self._read(m.scales)[rows],
            zeros,
            None if m.minima is None else self._read(m.minima)[rows],
        )

    def _read(self, stored: Stored) -> np.ndarray:
        count = stored.nbytes // stored.dtype.itemsize
        flat = np.fromfile(self._path, stored.dtype, count, offset=stored.offset)
        return flat.reshape(stored.shape)


def _dense(values: np.ndarray) -> Dense:
    return Dense(values.shape, str(values.dtype), lambda: values.astype(np.float32))
