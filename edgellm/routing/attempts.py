"""One call of one source: measured, and billed exactly once however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace

from edgellm.errors import EdgellmError
from edgellm.routing.errors import BrokenOff, RemoteFailed
from edgellm.routing.seams import Attempt, Card, RemoteEvents, Reservation
from edgellm.routing.tokens import MOST_BYTES_PER_TOKEN, prompt_estimate
from edgellm.stream import Delta, Done, Event, Request, Usage


def closable(events: Iterator[Event]) -> Generator[Event, None, None]:
    """The same events; closing this closes what is behind it, where that can be closed."""
    yield from events


class Meter:
    """Follows one attempt and settles its reservation at the first moment its usage is known.

    `remote` are the events of a remote, whose failed requests may be billed beside its answer.
    """

    def __init__(
        self, attempt: Attempt, card: Card | None, reservation: Reservation | None, request: Request
    ) -> None:
        self.attempt = attempt
        self.remote: RemoteEvents | None = None
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
            self._settle(self._estimate(), self._failed_requests() - 1)
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
                self._settle(event.usage, self._failed_requests())

    def _settle_failure(self, error: EdgellmError) -> None:
        if isinstance(error, BrokenOff):
            seen = error.usage if error.usage.completion_tokens else self._estimate()
            # The broken request is one of those that failed.
            self._settle(seen, error.maybe_billed - 1)
        elif isinstance(error, RemoteFailed) and error.usage is not None:
            self._settle(error.usage, error.maybe_billed)
        elif isinstance(error, RemoteFailed) and error.maybe_billed:
            self._settle(Usage(0, 0), error.maybe_billed)
        elif self._tokens:
            self._settle(self._estimate())
        elif self._open:
            self._open = False
            if self._reservation is not None:
                self._reservation.refund()

    def _settle(self, usage: Usage, failed_requests: int = 0) -> None:
        """Books `usage`, and the prompts of requests that failed before it."""
        if not self._open or self._card is None:
            return
        self._open = False
        if failed_requests > 0:
            prompts = usage.prompt_tokens + failed_requests * prompt_estimate(self._request)
            usage = replace(usage, prompt_tokens=prompts)
        self.attempt.usage = usage
        if self._reservation is not None:
            self.attempt.cost_usd = self._reservation.settle(usage)
        elif self._card.price is not None:
            self.attempt.cost_usd = self._card.price.cost_usd(usage)

    def _failed_requests(self) -> int:
        return self.remote.maybe_billed if self.remote is not None else 0

    def _estimate(self) -> Usage:
        tokens = max(self._tokens, self._bytes // MOST_BYTES_PER_TOKEN)
        return Usage(prompt_estimate(self._request), tokens)

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started_s) * 1e3
