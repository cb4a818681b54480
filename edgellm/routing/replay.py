"""What another threshold would have done to past decisions.

Where the log knows what became of both choices (shadow calls, feedback), a new policy's quality is
estimated by inverse propensity scoring, self-normalised (Swaminathan and Joachims 2015): decisions
the new policy would have made alike count, weighted by one over the chance they had. Decisions
made without chance say nothing about the other choice; how many count is always shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.routing.ledger import Decision

# A choice that was less likely than this would count more than it can prove.
LEAST_PROPENSITY = 0.01


@dataclass(frozen=True, slots=True)
class Replay:
    """`escalated` and `cost_usd` are what the threshold would have sent and what that costs at the
    mean price seen; `before_*` what happened. `good` is the estimated share of good answers, from
    `counted` decisions with a verdict worth `effective` independent ones; None without any."""

    threshold: float
    decisions: int
    escalated: float
    before_escalated: float
    cost_usd: float
    before_cost_usd: float
    good: float | None
    counted: int
    effective: float


def replay(decisions: Sequence[Decision], threshold: float) -> Replay:
    """The estimate for "escalate below `threshold`" over decisions that had a P(correct)."""
    judged = [d for d in decisions if d.p_after is not None]
    sent = [d for d in judged if (d.p_after or 0.0) < threshold]
    was_sent = [d for d in judged if _asked(d)]
    prices = [d.cost_usd for d in was_sent]
    mean_price = math.fsum(prices) / len(prices) if prices else 0.0
    good, counted, effective = _estimate(judged, threshold)
    count = max(len(judged), 1)
    return Replay(
        threshold, len(judged), len(sent) / count, len(was_sent) / count,
        mean_price * len(sent), math.fsum(prices), good, counted, effective,
    )  # fmt: skip


def _estimate(judged: Sequence[Decision], threshold: float) -> tuple[float | None, int, float]:
    """(share of good answers, decisions that count, what they are worth)."""
    weights, values = [], []
    for decision in judged:
        verdict = _verdict(decision)
        wants_remote = (decision.p_after or 0.0) < threshold
        if verdict is None or wants_remote != (decision.source == "remote"):
            continue
        chance = decision.propensity if wants_remote else 1 - decision.propensity
        if decision.propensity in (0.0, 1.0):
            chance = 1.0  # no chance was involved: the decision stands for itself alone
        weights.append(1 / max(chance, LEAST_PROPENSITY))
        values.append(verdict)
    if not weights:
        return None, 0, 0.0
    total = math.fsum(weights)
    good = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    return good, len(weights), total**2 / math.fsum(w * w for w in weights)


def _verdict(decision: Decision) -> float | None:
    """1 for an answer known to be good, 0 for a bad one: what the user said, else whether a shadow
    of the remote agreed."""
    if decision.feedback is not None:
        return float(decision.feedback > 0)
    if decision.shadow_agrees is not None and decision.source == "local":
        return float(decision.shadow_agrees)
    return None


def _asked(decision: Decision) -> bool:
    return decision.source == "remote" or decision.cost_usd > 0
