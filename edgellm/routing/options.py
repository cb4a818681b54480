"""What a user may decide about routing; checked where it is born."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from edgellm.errors import UsageError
from edgellm.routing.gain import Worth
from edgellm.routing.spans import LEAST_TOKENS

Policy = Literal[
    "local-only",
    "prefer-local",
    "prefer-remote",
    "remote-only",
    "route",
    "cascade",
    "auto",
    "hedge",
    "shadow",
    "ask",
]
POLICIES: tuple[str, ...] = get_args(Policy)
Handoff = Literal["prefill", "replace", "append"]
# What becomes of a request that holds something private; see edgellm/routing/privacy/options.py.
PrivacyMode = Literal["pin-local", "mask", "ask", "block", "off"]
PRIVACY_MODES: tuple[str, ...] = get_args(PrivacyMode)


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """Settings of a Router.

    threshold        `route`, `cascade` and `ask` keep answers with P(correct) of at least this
    risk             instead: at most this share of the answers that stay is wrong, with the
                     probability `certainty`, as the confidence pack certifies
    hold_back_*      a local answer that may be replaced waits for so many tokens or milliseconds,
                     whichever ends first; a change of source within them is invisible
    handoff          after that: `prefill` lets a remote that can do so go on from what was shown,
                     else as `replace`, which voids it; `append` leaves it and marks the place
    check_tokens     P(correct) is looked at after so many tokens each
    abort_checks     so many looks in a row below the threshold less `abort_margin` end a local
                     answer early; 0: never
    sticky_turns     after an escalated turn so many turns of that conversation start remotely
    hedge_*          the other side starts when the first token is later than this quantile of the
                     ones before; `hedge_delay_ms` until there are eight
    passage_tokens   of a long document a remote gets only so many tokens of passages that the
                     question is about; None: all of it
    shadow_share     this share of the requests also asks the remote, drawn with `seed`; None: by
                     the system's chance, so that short programs do not all draw the same

    check_tokens, abort_* and hedge_quantile are what saved most in recordings and simulated delays
    (tests/benchmarks/router/targets.py): 39 % of the tokens of answers given up, at 1.2 points.
    """

    policy: Policy = "local-only"
    threshold: float = 0.7
    risk: float | None = None
    certainty: float = 0.95
    hold_back_tokens: int = 32
    hold_back_ms: float = 1500.0
    handoff: Handoff = "prefill"
    check_tokens: int = 2
    abort_checks: int = 1
    abort_margin: float = 0.25
    sticky_turns: int = 1
    hedge_quantile: float = 0.6
    hedge_delay_ms: float = 500.0
    passage_tokens: int | None = None
    shadow_share: float = 0.05
    seed: int | None = None
    offline: bool = False
    worth: Worth = field(default_factory=Worth)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            known = ", ".join(POLICIES)
            raise UsageError(f"unknown routing policy {self.policy!r}; known are {known}")
        if self.handoff not in get_args(Handoff):
            known = ", ".join(get_args(Handoff))
            raise UsageError(f"unknown handoff {self.handoff!r}; known are {known}")
        for name in ("threshold", "abort_margin", "hedge_quantile", "shadow_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must be in [0, 1], got {value}")
        for name in ("hold_back_tokens", "hold_back_ms", "abort_checks", "sticky_turns"):
            value = getattr(self, name)
            if not value >= 0:
                raise UsageError(f"{name} must be 0 or more, got {value}")
        for name, value in (("risk", self.risk), ("certainty", self.certainty)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"{name} must be between 0 and 1, got {value}")
        if self.passage_tokens is not None and self.passage_tokens < LEAST_TOKENS:
            raise UsageError(
                f"passages need {LEAST_TOKENS} tokens or more, got {self.passage_tokens}"
            )
        if self.check_tokens < 1:
            raise UsageError(f"check_tokens must be 1 or more, got {self.check_tokens}")
        if not 0 <= self.hedge_delay_ms < math.inf:
            raise UsageError(f"hedge_delay_ms must be 0 or more, got {self.hedge_delay_ms}")
