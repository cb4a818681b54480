"""Isotonic calibration: scores become probabilities, their order unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
POOLS = 20


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising line through knots; flat beyond the first and the last."""

    scores: Float64
    probabilities: Float64

    def __call__(self, scores: Float64) -> Float64:
        """Probabilities (N,) of raw scores (N,)."""
        return np.interp(scores, self.scores, self.probabilities)


def fit(scores: Float64, correct: NDArray[np.bool_]) -> Isotonic:
    """The rising function nearest to the outcomes, by pooling adjacent violators (Ayer et al. 1955;
    Zadrozny and Elkan 2002 for calibration).

    Answers are pooled by twentieths of their scores first: on graded templates that were not fitted
    on, single answers as first pools were no better calibrated and tied more scores at both ends.
    Each pool counts one right and one wrong answer more than it holds (Laplace), so that no score
    promises certainty; its knot is the mean score. Between knots the line is straight, so that the
    order of scores survives.
    """
    order = np.argsort(scores, kind="stable")
    pools: list[tuple[float, float, float]] = []  # count, right answers, sum of scores
    for rows in np.array_split(order, min(POOLS, len(order))):
        pool = (float(len(rows)), float(correct[rows].sum()), float(scores[rows].sum()))
        while pools and pools[-1][1] * pool[0] >= pool[1] * pools[-1][0]:
            last = pools.pop()
            pool = (last[0] + pool[0], last[1] + pool[1], last[2] + pool[2])
        pools.append(pool)
    counts, rights, sums = (np.array(column) for column in zip(*pools, strict=True))
    return Isotonic(sums / counts, np.maximum.accumulate((rights + 1) / (counts + 2)))
