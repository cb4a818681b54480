"""The checkpoint's float weights for the reference, compared with what was stored on the way.

Each tensor is read and made float32 once for both: that takes longer than comparing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checks import within
from edgellm_export.recipe import Float, Integer, Keep, Treatment
from edgellm_export.store import Place, StoredWeights
from edgellm_export.weights import Blocks, Float32, Weight, to_float32

# Exact import: float32 rounding of a block's range (the integers are compared as they are).
EXACT_LIMIT = 1e-6
# Relative RMS error of a quantized tensor. Gaussian weights in 4 bits: 0.08, in 2 bits: 0.36; half
# a step everywhere in blocks of 64 with an outlier on either side: 0.4; another tensor's weights:
# 1.4. Calibrated rounding gives weights away for outputs, most of all in 2 bits.
ROUNDING_LIMIT = 0.5
ROUNDING_LIMIT_2_BITS = 0.9
TINY = float(np.finfo(np.float32).tiny)


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
            self._compare(name, source, values)
            self._seen.add(name)
            self._show(len(self._seen))
        return values

    def finish(self) -> None:
        """Checks the tensors that nobody has asked for."""
        for name in self._places.keys() - self._seen:
            self(name)

    @property
    def rms_error(self) -> float:
        """Of all tensors that were not kept, relative to their size."""
        return float(np.sqrt(self._wrong / self._total)) if self._total else 0.0

    def _compare(self, name: str, source: Weight, values: Float32) -> None:
        place, stored = self._places[name], self._stored.weight(name)
        a, b = values, to_float32(stored)
        if place.added:
            a = a + np.float32(place.added)
        match place.treatment:
            case Keep():
                if isinstance(source, Blocks) and isinstance(stored, Blocks):
                    same = np.array_equal(source.packed, stored.packed)
                    within(f"the integers of {name}", 0.0 if same else 1.0, 0.0)
                within(name, _spread(a, b), EXACT_LIMIT)
                self.kept += 1
                return
            case Float(dtype):
                within(name, _spread(a.astype(dtype).astype(np.float32), b), EXACT_LIMIT)
        difference = (a - b).reshape(-1)
        error = float(np.dot(difference, difference))
        power = float(np.dot(a.reshape(-1), a.reshape(-1)))
        within(name, float(np.sqrt(error / max(power, TINY))), _rounding_limit(place.treatment))
        self._wrong, self._total = self._wrong + error, self._total + power


def _rounding_limit(treatment: Treatment) -> float:
    few = isinstance(treatment, Integer) and treatment.bits == 2
    return ROUNDING_LIMIT_2_BITS if few else ROUNDING_LIMIT


def _spread(expected: Float32, found: Float32) -> float:
    """The largest difference, relative to the range of the expected numbers."""
    spread = max(float(expected.max()) - float(expected.min()), TINY)
    return float(np.abs(expected - found).max()) / spread
