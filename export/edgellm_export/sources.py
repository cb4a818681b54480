"""The checkpoint's float weights for the reference, compared with what was stored on the way.

Each tensor is read and made float32 once for both: that takes longer than comparing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checks import within
from edgellm_export.compare import compare
from edgellm_export.recipe import Integer, Keep, Treatment
from edgellm_export.store import Place
from edgellm_export.stored import StoredWeights
from edgellm_export.weights import Blocks, Dense, Float32, Weight, to_float32

# Exact import: float32 rounding of a block's range (the integers are compared as they are).
EXACT_LIMIT = 1e-6
# Relative RMS error of a quantized tensor. Gaussian weights in 4 bits: 0.08, in 2 bits: 0.36; half
# a step everywhere in blocks of 64 with an outlier on either side: 0.4; another tensor's weights:
# 1.4. Calibrated rounding gives weights away for outputs, most of all in 2 bits.
ROUNDING_LIMIT = 0.5
ROUNDING_LIMIT_2_BITS = 0.9


class CheckedSources:
    """A reference's `Weight`: tensors by name, float32, checked against the stored ones when first
    asked for. SelfCheckFailed names the tensor that differs and by how much."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stored: StoredWeights,
        places: Mapping[str, Place],
        show: Callable[[int], None],
    ) -> None:
        self._checkpoint, self._stored, self._places, self._show = checkpoint, stored, places, show
        self._seen: set[str] = set()
        self._wrong = self._total = 0.0
        self.kept = 0

    def __call__(self, name: str) -> Float32:
        source = self._checkpoint.weight(name)
        values = to_float32(source)
        if name in self._places and name not in self._seen:
            self._compare(name, source, Dense(values.shape, "float32", lambda: values))
        return values

    def finish(self) -> None:
        """Checks the tensors that nobody has asked for."""
        for name in self._places.keys() - self._seen:
            source = self._checkpoint.weight(name)
            self._compare(name, source, source)

    @property
    def rms_error(self) -> float:
        """Of all tensors that were not kept, relative to their size."""
        return float(np.sqrt(self._wrong / self._total)) if self._total else 0.0

    def _compare(self, name: str, source: Weight, values: Weight) -> None:
        """`values` are those of `source`, made float32 already or not."""
        place, stored = self._places[name], self._stored.weight(name)
        found = compare(values, stored, place)
        if not isinstance(place.treatment, Integer):
            within(name, found.spread(), EXACT_LIMIT)
        if isinstance(place.treatment, Keep):
            if isinstance(source, Blocks) and isinstance(stored, Blocks):
                same = np.array_equal(source.packed, stored.packed)
                within(f"the integers of {name}", 0.0 if same else 1.0, 0.0)
            self.kept += 1
        else:
            within(name, found.relative_rms(), _rounding_limit(place.treatment))
            self._wrong, self._total = self._wrong + found.error, self._total + found.power
        self._seen.add(name)
        self._show(len(self._seen))


def _rounding_limit(treatment: Treatment) -> float:
    few = isinstance(treatment, Integer) and treatment.bits == 2
    return ROUNDING_LIMIT_2_BITS if few else ROUNDING_LIMIT
