"""Certified risk: a threshold whose kept answers are wrong with probability at most `risk`.

Learn-then-Test (Angelopoulos et al., arXiv:2110.01052) with fixed-sequence testing: thresholds are
tried from strict to loose, each with an exact binomial test of "the answers kept are wrong more
often than `risk`", and the first that cannot be rejected ends the search. All thresholds before it
hold together with probability `confidence`, over the draw of the graded answers, whatever the
signal is worth; a poor signal only keeps fewer answers. Which thresholds are tested depends on the
scores alone, never on what was right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UsageError

# The sequence is fixed before any answer is looked at: P(correct) from 0.99 down to 0.01.
THRESHOLDS = np.round(np.arange(0.99, 0.0, -0.01), 2)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is certified: answers with P(correct) >= `threshold` stay local.

    `threshold` None: nothing could be certified. `kept` and `wrong` count the graded answers at
    the threshold, `graded` all of them; `p_value` is that of the last step accepted.
    """

    risk: float
    confidence: float
    threshold: float | None
    kept: int
    wrong: int
    graded: int
    p_value: float

    @property
    def share_kept(self) -> float:
        return self.kept / self.graded if self.graded else 0.0

    def line(self) -> str:
        """One line for a person."""
        sure = f"{self.confidence:.0%} confidence"
        if self.threshold is None:
            return (
                f"cannot certify a risk of {self.risk:.0%} with {sure} from {self.graded} graded "
                "answers; everything goes to the remote, or is asked about"
            )
        return (
            f"risk <= {self.risk:.0%} with {sure}: keep P(correct) >= {self.threshold:.3f}, "
            f"{self.share_kept:.0%} of the answers ({self.wrong} of {self.kept} were wrong)"
        )


def certify(
    scores: NDArray[np.float64], correct: NDArray[np.bool_], risk: float, confidence: float = 0.95
) -> Certificate:
    """The most permissive certified threshold on `scores` (N,), higher meaning more trusted.

    The scores must come from a model that never saw these answers. UsageError for a risk or a
    confidence outside (0, 1).
    """
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise UsageError(f"{name} must be between 0 and 1, got {value}")
    best = Certificate(risk, confidence, None, 0, 0, len(scores), 1.0)
    enough = _enough(len(scores), risk, confidence)
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        count, errors = int(kept.sum()), int((kept & ~correct).sum())
        if count < enough:
            continue  # no test was made, so none was failed
        p_value = binomial_cdf(errors, count, risk)
        if p_value > 1 - confidence:
            break
        best = Certificate(risk, confidence, float(threshold), count, errors, len(scores), p_value)
    return best


def _enough(graded: int, risk: float, confidence: float) -> int:
    """How many kept answers the first test needs: so many that it would pass with errors at half
    the risk; with fewer graded, so many that it would pass without an error.

    A sequence that starts on a handful of answers ends at the first unlucky one.
    """
    for half in (0.5, 0.0):
        for count in range(1, graded + 1):
            if binomial_cdf(int(count * risk * half), count, risk) <= 1 - confidence:
                return count
    return graded + 1


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), exact up to rounding."""
    if k >= n:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]  # fmt: skip
    top = max(logs)
    return min(1.0, math.exp(top) * math.fsum(math.exp(value - top) for value in logs))
