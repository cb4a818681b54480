"""What a routing signal is worth: ranking, calibration, and the cost of quality.

Signals are trust: higher means "more likely right". A deferral curve keeps the most trusted
answers local and sends the rest to the remote; it is taken at every answer, never interpolated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
ECE_BINS = 15
RESAMPLES = 2000


def auroc(trust: Float64, correct: Bools) -> float:
    """The chance that a right answer is trusted more than a wrong one; ties count half. NaN when
    all answers are right or all wrong. (Mann-Whitney U.)"""
    right, wrong = int(correct.sum()), int((~correct).sum())
    if not right or not wrong:
        return float("nan")
    _, place, counts = np.unique(trust, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[correct].sum() - right * (right + 1) / 2) / (right * wrong))


def within(trust: Float64, correct: Bools, groups: NDArray[np.str_]) -> float:
    """The mean AUROC inside each group that has right and wrong answers."""
    values = [auroc(trust[groups == g], correct[groups == g]) for g in np.unique(groups)]
    return float(np.nanmean(values)) if not np.all(np.isnan(values)) else float("nan")


def aupr_wrong(trust: Float64, correct: Bools) -> float:
    """Average precision of finding the wrong answers."""
    wrong = ~correct[np.argsort(trust, kind="stable")]
    precision = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    return float(precision[wrong].mean()) if wrong.any() else float("nan")


def aurc(trust: Float64, correct: Bools) -> float:
    """Area under the risk-coverage curve: the mean risk of keeping the k most trusted answers."""
    wrong = np.cumsum(~correct[np.argsort(-trust, kind="stable")])
    return float((wrong / np.arange(1, len(wrong) + 1)).mean())


def excess_aurc(trust: Float64, correct: Bools) -> float:
    """AURC above that of the perfect order (Geifman et al., arXiv:1805.08206)."""
    return aurc(trust, correct) - aurc(correct.astype(np.float64), correct)


def ece(p_correct: Float64, correct: Bools) -> float:
    """Expected calibration error over bins of equal width (Guo et al., arXiv:1706.04599)."""
    bins = np.minimum((p_correct * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, p_correct - correct, ECE_BINS)
    return float(np.abs(gaps).sum() / len(correct))


def brier(p_correct: Float64, correct: Bools) -> float:
    return float(((p_correct - correct) ** 2).mean())


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy (N+1,) of the mixture when the k least trusted answers come from the remote."""

    accuracy: Float64

    def calls_for(self, share: float) -> float:
        """The least share of remote calls from which on the mixture never falls below `share` of
        the remote's accuracy again; NaN when even all calls do not reach it."""
        goal = share * self.accuracy[-1] - 1e-12
        below = np.flatnonzero(self.accuracy < goal)
        if not len(below):
            return 0.0
        return float((below[-1] + 1) / (len(self.accuracy) - 1))

    def gap_calls(self, share: float) -> float:
        """CPT: the share of calls that recovers `share` of the gap from local to remote accuracy
        (Ong et al., arXiv:2406.18665); NaN where the remote is no better."""
        low, high = self.accuracy[0], self.accuracy[-1]
        if high <= low:
            return float("nan")
        reached = np.flatnonzero(self.accuracy >= low + share * (high - low) - 1e-12)
        return float(reached[0] / (len(self.accuracy) - 1))

    def apgr(self) -> float:
        """The mean recovered share of that gap over all shares of calls; NaN without a gap."""
        low, high = self.accuracy[0], self.accuracy[-1]
        return float(((self.accuracy - low) / (high - low)).mean()) if high > low else float("nan")


def curve(trust: Float64, local: Bools, remote: Float64) -> Curve:
    """The deferral curve; `remote` (N,) is the remote's chance to be right on each prompt."""
    order = np.argsort(trust, kind="stable")
    gain = (remote - local)[order]
    return Curve(np.concatenate([[local.mean()], local.mean() + np.cumsum(gain) / len(local)]))


def oracle(local: Bools, remote: Float64) -> Float64:
    """The trust that sends first what gains most."""
    return -(remote - local)


Metric = Callable[[NDArray[np.int64]], float]


def interval(
    metric: Metric, clusters: NDArray[np.str_], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval of a metric of row numbers, clusters drawn as wholes.

    Prompts of one template share its wording; drawing single prompts would be too sure.
    """
    random = np.random.default_rng(seed)
    names, place = np.unique(clusters, return_inverse=True)
    rows = [np.flatnonzero(place == i) for i in range(len(names))]
    values = []
    for _ in range(resamples):
        drawn = random.integers(0, len(rows), len(rows))
        values.append(metric(np.concatenate([rows[i] for i in drawn])))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)
