"""Does a certificate hold what it says? Many draws of graded answers from a known population."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.routing.confidence.certify import THRESHOLDS, certify

DRAWS = 500


@dataclass(frozen=True, slots=True)
class Check:
    """Of `draws` certificates, how many promised more than the population keeps; the mean share of
    answers kept, next to the share that a threshold chosen with hindsight would keep."""

    risk: float
    confidence: float
    draws: int
    graded: int
    violations: int
    certified: int
    kept_share: float
    best_share: float

    @property
    def violation_rate(self) -> float:
        return self.violations / self.draws


def check(
    scores: NDArray[np.float64],
    correct: NDArray[np.bool_],
    risk: float,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Check:
    """Certificates from half as many answers as there are, drawn with replacement, held against
    all answers as the population: its risk at a threshold is then known exactly."""
    random = np.random.default_rng(seed)
    graded = len(scores) // 2
    violations = certified = 0
    shares = []
    for _ in range(draws):
        drawn = random.integers(0, len(scores), graded)
        found = certify(scores[drawn], correct[drawn], risk, confidence)
        if found.threshold is None:
            shares.append(0.0)
            continue
        certified += 1
        kept = scores >= found.threshold
        violations += bool((~correct[kept]).mean() > risk)
        shares.append(float(kept.mean()))
    return Check(
        risk, confidence, draws, graded, violations, certified, float(np.mean(shares)),
        best_share(scores, correct, risk),
    )  # fmt: skip


def best_share(scores: NDArray[np.float64], correct: NDArray[np.bool_], risk: float) -> float:
    """The largest share kept by any threshold of the sequence whose risk is at most `risk`."""
    shares = [0.0]
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        if kept.any() and (~correct[kept]).mean() <= risk:
            shares.append(float(kept.mean()))
    return max(shares)
