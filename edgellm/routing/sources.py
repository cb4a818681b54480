"""Who can be asked for one request; each call is measured, and goes through the guard if remote."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain

from edgellm.errors import EdgellmError, UsageError
from edgellm.routing.asked import Asked
from edgellm.routing.attempts import Meter
from edgellm.routing.policies import Decision
from edgellm.routing.seams import (
    Attempt,
    Budget,
    Confidence,
    Continuing,
    Guard,
    Ledger,
    Remote,
    RemoteEvents,
)
from edgellm.routing.tokens import most_prompt_tokens
from edgellm.stream import Delta, Done, Event, Request

Events = Generator[Event, None, None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a router is made of."""

    local: Continuing
    remotes: tuple[Remote, ...]
    confidence: Confidence | None
    guard: Guard | None
    budget: Budget | None
    ledger: Ledger | None


class Sources:
    """The local model and the remotes that a decision allows, each call being measured."""

    def __init__(self, parts: Parts, decision: Decision, asked: Asked) -> None:
        self.attempts: list[Attempt] = []
        self.remotes = [parts.remotes[index] for index in decision.remotes]
        self._live: list[RemoteEvents] = []
        self._parts = parts
        self._asked = asked

    def local(self, observe: bool = False, said: str = "", tokens: int = 0) -> Events:
        """The local answer; after `said`, which took so many tokens, where it goes on from that."""
        request = _shortened(self._asked.request, tokens)
        if observe:
            request = replace(request, observe=True, logprobs=request.logprobs or 0)
        attempt = self._attempt("local", remote=False)
        prefix, local = self._asked.prefix + said, self._parts.local
        return Meter(attempt, None, None, request).follow(
            lambda: local.stream(request, prefix) if prefix else local.stream(request)
        )

    def remote(self, remote: Remote, said: str = "", tokens: int = 0) -> Events:
        """The answer of a remote, through the guard, paid from the budget."""
        asked, card = self._asked, remote.options
        request, prefix = _shortened(asked.sent, tokens), asked.prefix + said
        guard, budget, reservation = self._parts.guard, self._parts.budget, None
        if guard is None:
            raise UsageError("a remote can only be asked through a privacy guard")
        if budget is not None:
            most = most_prompt_tokens(request, prefix, card.attempts)
            reservation = budget.reserve(card, most, request.max_tokens)
        meter = Meter(self._attempt(card.model, remote=True), card, reservation, request)

        def ask() -> RemoteEvents:
            meter.remote = guard.stream(remote, request, prefix, asked.request)
            self._live.append(meter.remote)
            return meter.remote

        yield from meter.follow(ask)

    def hang_up(self) -> None:
        """Ends the remote calls under way, from any thread: their sockets are closed."""
        for events in self._live:
            # A generator that another thread is pulling cannot be closed; its thread will do it.
            with suppress(ValueError):
                events.close()

    @property
    def asked_remote(self) -> bool:
        return any(attempt.remote for attempt in self.attempts)

    def _attempt(self, source: str, remote: bool) -> Attempt:
        self.attempts.append(Attempt(source, remote))
        return self.attempts[-1]

    def any_remote(self) -> Events:
        """The answer of the first remote that says a word; raises the error of the last."""
        error: EdgellmError = nobody()
        for remote in self.remotes:
            with closing(self.remote(remote)) as events:
                try:
                    opening = first_word(events)
                except EdgellmError as failure:
                    error = failure
                    continue
                yield from chain(opening, events)
                return
        raise error


def _shortened(request: Request, tokens: int) -> Request:
    """The request with so many tokens less to be said."""
    return replace(request, max_tokens=max(request.max_tokens - tokens, 1))


def nobody() -> UsageError:
    return UsageError("no remote may be asked; set one with --remote")


def first_word(events: Iterator[Event]) -> list[Event]:
    """The events up to the first text, which shows that there will be an answer."""
    opening = []
    for event in events:
        opening.append(event)
        word = isinstance(event, Delta) and (event.text or event.logprobs)
        if word or isinstance(event, Done):
            return opening
    raise EdgellmError("the answer ended without Done; its backend is broken")
