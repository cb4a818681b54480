"""Moving a checkpoint's weights into the data file; `stored` reads them back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgellm.errors import Incompatible
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.data import DataFile, Stored
from edgellm_export.linear import Matrix, Slot
from edgellm_export.matrices import store_matrix
from edgellm_export.progress import silent
from edgellm_export.quantize import treat
from edgellm_export.recipe import Keep, Recipe, Treatment
from edgellm_export.rotated import store_rotated
from edgellm_export.weights import (
    Dense,
    Float32,
    Weight,
    alike,
    alternate,
    stack,
    to_float32,
)

# transformers.js has no word for 2 bits; q4 is what it would load them as.
_SUFFIX = {2: "_q4", 4: "_q4", 8: "_quantized"}
_FLOAT_SUFFIX = {"float32": "", "float16": "_fp16"}
# Tensors that some checkpoints carry and no graph needs.
IGNORED = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint tensor went: rows start…stop of a matrix or a vector, every `step`th.
    `added` was added to its numbers."""

    stored: Matrix | Stored
    start: int
    stop: int
    treatment: Treatment
    step: int = 1
    added: float = 0.0


@dataclass
class WeightStore:
    """Writes weights to `data` as the recipe wants them and remembers where each one went.

    `instead` has the treatment of single tensors for which the recipe's does not do.
    `statistics` has what calibration found for a matrix, by its name.
    `slots`: names of weights that a run-time adapter may change.
    `tables` are the names of those whose rows are looked up, whose blocks have no tails.
    `rotates`: layers are also written for long prompts (rotated).
    `told` hears the name of each matrix that has been written.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    data: DataFile
    instead: Mapping[str, Treatment] = field(default_factory=dict)
    statistics: Callable[[str], Float32 | None] | None = None
    slots: Collection[str] = ()
    rotates: bool = False
    places: dict[str, Place] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    parameters: int = 0
    told: Callable[[str], None] = silent

    def linear(self, name: str, *parts: str, bias: bool = False) -> Matrix:
        """One matrix from the output features of `parts`, treated as a layer.

        Formats that differ stay apart inside it: as one they would have to become float32.
        """
        return self._matrix(name, parts, self.recipe.linear, bias, self.rotates)

    def outer(self, name: str, part: str) -> Matrix:
        """Embedding or lm_head: the recipe's `head` treatment."""
        self.tables.add(name)
        return self._matrix(name, (part,), self.recipe.head)

    def exact(self, name: str, part: str) -> Matrix:
        """A small matrix that no recipe rounds, such as a router's: what it says is a choice."""
        matrix = self._matrix(name, (part,), Keep())
        del self.matrices[name]  # nothing about it is to be chosen
        return matrix

    def experts(self, name: str, experts: Sequence[tuple[str, ...]]) -> Matrix:
        """The matrices of all experts, one expert after the other, treated as a layer.

        Of an expert's parts, all of one size, the rows alternate: gate 0, up 0, gate 1, up 1, …
        """
        step, treatment = len(experts[0]), self.recipe.linear
        names = [f"{part}.weight" for expert in experts for part in expert]
        weights = [self.checkpoint.weight(name) for name in names]
        each = [alternate(weights[i : i + step]) for i in range(0, len(weights), step)]
        try:
            matrix = store_matrix(self.data, name, treat(stack(each), treatment))
        except Incompatible as error:
            raise Incompatible(f"tensor {names[0]}: {error}") from error
        self._wrote(name, matrix)
        rows = matrix.shape[0] // len(experts)
        for i, one in enumerate(names):
            start = i // step * rows
            self.places[one] = Place(matrix, start + i % step, start + rows, treatment, step)
        return matrix

    def vector(self, name: str, added: float = 0.0) -> Stored:
        """A norm's weight, float32; Gemma's norms multiply by 1 + weight: `added` makes that 1."""
        values = to_float32(self.checkpoint.weight(name)) + np.float32(added)
        self.parameters += values.size
        stored = self.data.append(name, values)
        self.places[name] = Place(stored, 0, len(values), Keep(), added=added)
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

    def _matrix(
        self,
        name: str,
        parts: tuple[str, ...],
        treatment: Treatment,
        bias: bool = False,
        rotates: bool = False,
    ) -> Matrix:
        treatment = self.recipe.matrices.get(name, treatment)
        weights = [self.checkpoint.weight(f"{part}.weight") for part in parts]
        apart = {part: f"{name}.{part.rpartition('.')[2]}" for part in parts}
        # A plan for what lies apart in the checkpoint names the parts.
        treatments = {
            self.instead.get(f"{part}.weight", self.recipe.matrices.get(one, treatment))
            for part, one in apart.items()
        }
        if len(treatments) > 1 or (treatments == {Keep()} and not _joinable(weights)):
            return joined(
                [self._matrix(one, (p,), treatment, bias, rotates) for p, one in apart.items()]
            )
        treatment = treatments.pop()
        known = self.statistics(name) if self.statistics else None
        try:
            treated = treat(stack(weights), treatment, known, self._may_have_tails(name))
            matrix = store_matrix(self.data, name, treated)
        except Incompatible as error:
            raise Incompatible(f"tensor {parts[0]}.weight: {error}") from error
        if rotates:
            matrix = replace(matrix, rotated=store_rotated(self.data, name, treated))
        if bias:
            matrix = replace(matrix, bias=self._biases(f"{name}.bias", parts))
        names = [f"{part}.weight" for part in parts]
        if any(one in self.slots for one in names):
            rows = [weight.shape[0] for weight in weights]
            matrix = replace(matrix, slots=tuple(map(Slot, parts, rows)))
        self._place(names, weights, matrix, treatment)
        self.matrices[name] = matrix
        self._wrote(name, matrix)
        return matrix

    def _may_have_tails(self, name: str) -> bool:
        """Not where rows are looked up, and not for GPUs, on which no tail has been tried."""
        return name not in self.tables and self.recipe.activations == "float32"

    def _wrote(self, name: str, matrix: Matrix) -> None:
        self.parameters += matrix.shape[0] * matrix.shape[1]
        self.told(name)

    def _biases(self, name: str, parts: tuple[str, ...]) -> Stored:
        """The biases of `parts` one after another, float32."""
        names = [f"{part}.bias" for part in parts]
        biases = [self.checkpoint.weight(name) for name in names]
        values = to_float32(stack(biases))
        stored = self.data.append(name, values)
        self._place(names, biases, stored, Keep())
        self.parameters += values.size
        return stored

    def _place(
        self,
        names: Sequence[str],
        weights: Sequence[Weight],
        stored: Matrix | Stored,
        treatment: Treatment,
    ) -> None:
        start = 0
        for name, weight in zip(names, weights, strict=True):
            stop = start + weight.shape[0]
            self.places[name] = Place(stored, start, stop, treatment)
            start = stop


def stored_suffix(store: WeightStore) -> str:
    """The suffix (see Recipe) of what most weights of the layers are stored as."""
    counts: Counter[str] = Counter()
    for name, place in store.places.items():
        if isinstance(place.stored, Matrix) and ".layers." in name:
            m = place.stored
            kind = _FLOAT_SUFFIX[str(m.values.dtype)] if m.scales is None else _SUFFIX[m.bits]
            counts[kind] += (place.stop - place.start) * m.shape[1]
    return counts.most_common(1)[0][0] if counts else ""


def joined(parts: Sequence[Matrix]) -> Matrix:
    """Matrices over the same inputs as one, each stored as it is."""
    shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
    return replace(parts[0], shape=shape, parts=tuple(parts))


def _joinable(weights: Sequence[Weight]) -> bool:
    return all(isinstance(weight, Dense) for weight in weights) or alike(weights)
