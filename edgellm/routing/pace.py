"""How fast each side was lately: for when to hedge, and for what a second of waiting costs."""

from __future__ import annotations

from collections import deque

from edgellm.routing.options import RouterOptions
from edgellm.routing.policies import Side
from edgellm.routing.seams import Attempt

# The answers remembered for each side, and how many it takes to believe them.
REMEMBERED = 64
ENOUGH = 8
# An answer's seconds before there are any to go by: a short one of a small model, a short one
# over a network.
FIRST_GUESS_S: dict[Side, float] = {"local": 1.0, "remote": 2.0}


class Pace:
    """First-token times and durations of the latest answers. Threads may share one."""

    def __init__(self) -> None:
        self._first_ms: dict[Side, deque[float]] = {}
        self._total_ms: dict[Side, deque[float]] = {}
        for side in FIRST_GUESS_S:
            self._first_ms[side] = deque(maxlen=REMEMBERED)
            self._total_ms[side] = deque(maxlen=REMEMBERED)

    def note(self, attempt: Attempt) -> None:
        """Learns from an attempt that said a word; one that was cancelled tells no duration."""
        side: Side = "remote" if attempt.remote else "local"
        if attempt.first_token_ms:
            self._first_ms[side].append(attempt.first_token_ms)
        if attempt.outcome == "answered":
            self._total_ms[side].append(attempt.total_ms)

    def seconds(self, side: Side) -> float:
        """The median duration of an answer."""
        seen = list(self._total_ms[side])
        return _quantile(seen, 0.5) / 1e3 if seen else FIRST_GUESS_S[side]

    def first_side(self) -> Side:
        """The side whose first token comes sooner in the median; the local one while unknown."""
        local, remote = list(self._first_ms["local"]), list(self._first_ms["remote"])
        if min(len(local), len(remote)) < ENOUGH:
            return "local"
        return "local" if _quantile(local, 0.5) <= _quantile(remote, 0.5) else "remote"

    def delay_s(self, side: Side, options: RouterOptions) -> float:
        """How long the other side waits for the first token of `side`.

        A quantile of what it took before: DiSCo's wait-time dispatch (arXiv:2502.11417).
        """
        seen = list(self._first_ms[side])
        if len(seen) < ENOUGH:
            return options.hedge_delay_ms / 1e3
        return _quantile(seen, options.hedge_quantile) / 1e3


def _quantile(values: list[float], q: float) -> float:
    """The smallest value that a share `q` of `values` does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]
