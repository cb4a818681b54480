"""One call of one source: measured, and billed exactly once however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from edgellm.errors import EdgellmError
from edgellm.routing.errors import BrokenOff, RemoteFailed
from edgellm.routing.seams import Attempt, Card, Reservation
from edgellm.stream import Delta, Done, Event, Request, Usage

# A token of English is about four bytes in the vocabularies of 2023 to 2026.
BYTES_PER_TOKEN = 4
# What a chat template puts around a message, rounded up.
TEMPLATE_TOKENS = 8


def prompt_estimate(request: Request, prefix: str = "") -> int:
    """About how many tokens a prompt has; rather too few, for asking whether it can fit."""
    return max(1, (_prompt_bytes(request) + len(prefix)) // BYTES_PER_TOKEN)


def most_prompt_tokens(request: Request, prefix: str = "") -> int:
    """An upper bound for a byte-level vocabulary, where every token has a byte or more."""
    around = TEMPLATE_TOKENS * (len(request.messages) + 1)
    return _prompt_bytes(request) + len(prefix.encode(errors="replace")) + around


def _prompt_bytes(request: Request) -> int:
    texts = [message.content for message in request.messages] or [request.prompt or ""]
    return sum(len(text.encode(errors="replace")) for text in texts)


def closable(events: Iterator[Event]) -> Generator[Event, None, None]:
    """The same events; closing this closes what is behind it, where that can be closed."""
    yield from events


class Meter:
    """Follows one attempt and settles its reservation at the first moment its usage is known."""

    def __init__(
        self, attempt: Attempt, card: Card | None, reservation: Reservation | None, request: Request
    ) -> None:
        self.attempt = attempt
        self._card = card
        self._reservation = reservation
        self._request = request
        self._open = card is not None
        self._started_s = time.perf_counter()
        self._tokens = 0
        self._bytes = 0

    def follow(self, ask: Callable[[], Iterator[Event]]) -> Generator[Event, None, None]:
        """The same events; the bill is settled before Done passes, or when they end otherwise."""
        attempt = self.attempt
        try:
            with closing(closable(ask())) as events:
                for event in events:
                    self._see(event)
                    yield event
        except EdgellmError as error:
            attempt.outcome, attempt.error = "failed", str(error)
            self._settle_failure(error)
            raise
        finally:
            if attempt.outcome == "running":
                attempt.outcome = "abandoned"
            # The consumer went away: the remote may have worked, so what was seen is counted.
            self._settle(self._estimate())
            attempt.total_ms = self._elapsed_ms()

    def _see(self, event: Event) -> None:
        match event:
            case Delta():
                self.attempt.first_token_ms = self.attempt.first_token_ms or self._elapsed_ms()
                self._tokens += 1
                self._bytes += len(event.text.encode(errors="replace"))
            case Done():
                self.attempt.outcome = "answered"
                self.attempt.usage = event.usage
                if self._card is None:
                    # A Router in the place of the local model may have paid somebody.
                    self.attempt.cost_usd = event.route.cost_usd
                self._settle(event.usage)

    def _settle_failure(self, error: EdgellmError) -> None:
        if isinstance(error, BrokenOff):
            self._settle(error.usage if error.usage.completion_tokens else self._estimate())
        elif isinstance(error, RemoteFailed) and error.usage is not None:
            self._settle(error.usage)
        elif isinstance(error, RemoteFailed) and error.maybe_billed:
            asked = prompt_estimate(self._request) * error.maybe_billed
            self._settle(Usage(asked, 0))
        elif self._tokens:
            self._settle(self._estimate())
        elif self._open:
            self._open = False
            if self._reservation is not None:
                self._reservation.refund()

    def _settle(self, usage: Usage) -> None:
        if not self._open or self._card is None:
            return
        self._open = False
        self.attempt.usage = usage
        if self._reservation is not None:
            self.attempt.cost_usd = self._reservation.settle(usage)
        elif self._card.price is not None:
            self.attempt.cost_usd = self._card.price.cost_usd(usage)

    def _estimate(self) -> Usage:
        tokens = max(self._tokens, self._bytes // BYTES_PER_TOKEN)
        return Usage(prompt_estimate(self._request), tokens)

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started_s) * 1e3
