"""Whether the prompts of today are still like those that the confidence pack was made from.

Two alarms: the scores have another distribution (Kolmogorov-Smirnov, two samples), or verdicts on
answers kept local show more errors than the certified risk allows (exact binomial). Either makes
the router fall back to the threshold certified for half the risk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgellm.routing.confidence.certify import binomial_cdf
from edgellm.routing.confidence.pack import Pack
from edgellm.routing.ledger import Decision, Ledger
from edgellm.routing.options import RouterOptions

# Fewer answers than this show nothing; older ones than this are history.
LEAST = 50
WINDOW = 400
# One false alarm in a hundred looks: the price of it is some remote calls more.
ALARM_P = 0.01


@dataclass(frozen=True, slots=True)
class Drift:
    """`alarm` says why, None while all is as it was. `looked_at` decisions had a P(correct)."""

    looked_at: int
    distance: float
    p_scores: float
    audited: int
    wrong: int
    p_errors: float
    alarm: str | None


def drift(
    decisions: Sequence[Decision], kept_scores: NDArray[np.float64], threshold: float, risk: float
) -> Drift:
    """The state after the last WINDOW decisions, youngest first."""
    recent = [d for d in decisions if d.p_after is not None][:WINDOW]
    scores = np.array([d.p_after for d in recent], np.float64)
    distance, p_scores = 0.0, 1.0
    if len(scores) >= LEAST:
        distance, p_scores = kolmogorov_smirnov(scores, kept_scores)
    verdicts = [
        _right(d) for d in recent if d.source == "local" and (d.p_after or 0.0) >= threshold
    ]
    audited = [v for v in verdicts if v is not None]
    wrong = audited.count(False)
    p_errors = 1 - binomial_cdf(wrong - 1, len(audited), risk) if wrong else 1.0
    alarm = None
    if p_errors < ALARM_P:
        alarm = f"{wrong} of {len(audited)} audited local answers were wrong, above risk {risk:.0%}"
    elif p_scores < ALARM_P:
        alarm = f"the last {len(scores)} prompts are unlike the graded ones (KS {distance:.2f})"
    return Drift(len(recent), distance, p_scores, len(audited), wrong, p_errors, alarm)


def look(pack: Pack, ledger: Ledger, risk: float, confidence: float) -> Drift:
    """The state of the answers that a pack judged, at the threshold certified for a risk."""
    threshold = pack.certify(risk, confidence).threshold
    decisions = ledger.latest(WINDOW, pack.about.weights_sha256)
    return drift(decisions, pack.kept_scores, math.inf if threshold is None else threshold, risk)


def careful(options: RouterOptions, pack: Pack, ledger: Ledger) -> tuple[RouterOptions, str | None]:
    """The options for a session that begins now, and what the user should know of them.

    On alarm the risk is halved; without a risk there is no promise to keep.
    """
    if options.risk is None:
        return options, None
    alarm = look(pack, ledger, options.risk, options.certainty).alarm
    if alarm is None:
        return options, None
    stricter = replace(options, risk=options.risk / 2)
    return stricter, f"drift: {alarm}; kept to risk {options.risk / 2:.1%} until that ends"


def kolmogorov_smirnov(
    ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> tuple[float, float]:
    """The largest distance between two empirical distributions, and its asymptotic p-value
    (Smirnov 1948, with Stephens' 1970 correction for small samples)."""
    places = np.concatenate([ours, theirs])
    below = [np.searchsorted(np.sort(s), places, side="right") / len(s) for s in (ours, theirs)]
    distance = float(np.abs(below[0] - below[1]).max())
    root = math.sqrt(len(ours) * len(theirs) / (len(ours) + len(theirs)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:
        return distance, 1.0  # the series alternates there, and the answer is 1
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return distance, min(max(2 * math.fsum(terms), 0.0), 1.0)


def _right(decision: Decision) -> bool | None:
    if decision.feedback is not None:
        return decision.feedback > 0
    return decision.shadow_agrees
