"""What the router needs of its neighbours: protocols of one or two methods.

    Router ── Guard ──▶ remote      the guard is the only door: `Remote` has no way to ask
           ── Budget                reserved before a call, settled or refunded after it
           ── Confidence            P(correct) of what the local model shows
           ── Ledger                one record for each request

A hedged or shadowed call runs in a thread of its own, so each of them may be used by two threads.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edgellm.routing.signals import Observed
from edgellm.stream import Event, Request, Route, Usage

VerdictKind = Literal["allow", "mask", "ask", "pin-local", "block"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may leave this machine; `why` names what was found, never its text."""

    kind: VerdictKind = "allow"
    why: str = ""

    @property
    def may_leave(self) -> bool:
        return self.kind in ("allow", "mask")


class Price(Protocol):
    def cost_usd(self, usage: Usage) -> float: ...


class Card(Protocol):
    """What a remote says of itself; lower tiers are asked first. `price` None: unknown.

    With "prefill" among the capabilities it can go on from given text. One call may come to
    `attempts` requests, since what fails before its first word is tried again.
    """

    @property
    def attempts(self) -> int: ...

    @property
    def model(self) -> str: ...

    @property
    def tier(self) -> int: ...

    @property
    def context_tokens(self) -> int | None: ...

    @property
    def capabilities(self) -> frozenset[str]: ...

    @property
    def price(self) -> Price | None: ...


class Remote(Protocol):
    """A remote as the router sees it. It has no `stream` here: asking it is the guard's."""

    @property
    def options(self) -> Card: ...

    def wait_s(self) -> float:
        """Seconds until it may be asked, by its breaker; 0 when it may be now. Asks nobody."""
        ...


class RemoteEvents(Protocol):
    """The events of a remote's answer. `close` ends it at once, from any thread."""

    @property
    def maybe_billed(self) -> int:
        """How many requests so far came to no answer and may be charged all the same."""
        ...

    def __iter__(self) -> Iterator[Event]: ...

    def __next__(self) -> Event: ...

    def close(self) -> None: ...


class Guard(Protocol):
    """The only door to a remote. `whole` is the request as it was before passages were left out;
    by it a conversation is known again."""

    def judge(self, request: Request, whole: Request | None = None) -> Verdict:
        """Whether the request may leave, before anything is sent."""
        ...

    def stream(
        self, remote: Remote, request: Request, prefix: str = "", whole: Request | None = None
    ) -> RemoteEvents:
        """The remote's answer; `prefix` is its beginning. PrivacyBlocked before `Start`."""
        ...


class Continuing(Protocol):
    """A Backend that can go on from the first words of its answer; those are not repeated."""

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]: ...


class Reservation(Protocol):
    """Money set aside for one call. Exactly one of the two is called, once."""

    def settle(self, usage: Usage) -> float:
        """Books what was used and returns its price in USD."""
        ...

    def refund(self) -> None: ...


class Budget(Protocol):
    def denial(self, card: Card, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why such a call is over the budget, None when it is within; reserves nothing."""
        ...

    def reserve(self, card: Card, prompt_tokens: int, max_tokens: int) -> Reservation:
        """Sets the most it may cost aside; BudgetExhausted when that is too much."""
        ...


class Confidence(Protocol):
    """A pack that is bound to the local model."""

    def before(self, observed: Observed) -> float | None:
        """P(correct) of an answer not begun, from prompt and prefill; None: no opinion."""
        ...

    def after(self, observed: Observed) -> float:
        """P(correct) of an answer, or of an answer so far."""
        ...


Outcome = Literal["running", "answered", "failed", "abandoned"]


@dataclass(slots=True)
class Attempt:
    """One call of one source, as it went. Times in milliseconds from its start; 0 where never."""

    source: str
    remote: bool
    outcome: Outcome = "running"
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    cost_usd: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One request and how it was answered. `route` None: refused, failed, or closed before its end.

    `propensity` is the probability with which the remote was asked: 0 and 1 where no chance was
    involved, else the share of shadow calls, whose text is `shadow_text`. `signals` are the few
    numbers that tell most about the local answer.
    """

    request: Request
    policy: str
    reason: str
    p_before: float | None = None
    propensity: float = 0.0
    p_after: float | None = None
    text: str = ""
    route: Route | None = None
    attempts: tuple[Attempt, ...] = ()
    shadow_text: str | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    signals: Mapping[str, float] = field(default_factory=dict)


class Ledger(Protocol):
    def record(self, record: Record) -> None: ...
