"""How far stored weights are from those of the checkpoint, a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm_export.recipe import Float
from edgellm_export.store import Place
from edgellm_export.weights import Dense, Float32, Weight, pieces

TINY = float(np.finfo(np.float32).tiny)


@dataclass(slots=True)
class Difference:
    """`error` and `power` are sums of squares: of what differs, and of the weights themselves.
    `largest` is the largest difference from what the treatment should give, `low` and `high` the
    range of that."""

    error: float = 0.0
    power: float = 0.0
    largest: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def relative_rms(self) -> float:
        return float(np.sqrt(self.error / max(self.power, TINY)))

    def spread(self) -> float:
        """The largest difference, relative to the range of the expected numbers."""
        return self.largest / max(self.high - self.low, TINY)


def compare(source: Weight, stored: Weight, place: Place) -> Difference:
    """What a tensor of the checkpoint lost on its way to `place`, where it now is `stored`."""
    found = Difference()
    theirs = source.numpy() if isinstance(source, Dense) else source
    ours = stored.numpy() if isinstance(stored, Dense) else stored
    for part in pieces(source.shape[0], int(np.prod(source.shape[1:]))):
        a = theirs[part] if isinstance(theirs, np.ndarray) else theirs.rows(part).dequantize()
        b = ours[part] if isinstance(ours, np.ndarray) else ours.rows(part).dequantize()
        _add(found, a + np.float32(place.added) if place.added else a, b, place)
    return found


def _add(found: Difference, a: Float32, b: Float32, place: Place) -> None:
    rounded = a
    if isinstance(place.treatment, Float):
        rounded = a.astype(place.treatment.dtype).astype(np.float32)
    difference = np.subtract(rounded, b)
    # Not max(a, b): an undefined number must be found, wherever it comes.
    found.largest = float(np.maximum(found.largest, np.abs(difference).max()))
    found.low = min(found.low, float(rounded.min()))
    found.high = max(found.high, float(rounded.max()))
    np.subtract(a, b, out=difference)
    found.error += float(np.vdot(difference, difference))
    found.power += float(np.vdot(a, a))
