"""A remote model as a Backend: any server that speaks OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from types import TracebackType

from edgellm.routing.remote import wire
from edgellm.routing.remote.call import Call
from edgellm.routing.remote.circuit import Breaker, Connectivity
from edgellm.routing.remote.options import RemoteOptions
from edgellm.routing.remote.wire import Outgoing
from edgellm.stream import Event, Request, Sampling


class RemoteBackend:
    """Answers requests over HTTP, any number at a time. It sends nothing until an answer is pulled.

    Share one `connectivity` among remotes, so that a dead network is noticed once.
    """

    def __init__(
        self,
        options: RemoteOptions,
        breaker: Breaker | None = None,
        connectivity: Connectivity | None = None,
    ) -> None:
        self.options = options
        self.breaker = breaker or Breaker()
        self.connectivity = connectivity or Connectivity()

    @property
    def name(self) -> str:
        return self.options.model

    @property
    def default_sampling(self) -> Sampling:
        """Greedy: what the remote itself would recommend is not told."""
        return Sampling()

    def outgoing(self, request: Request, prefix: str = "") -> Outgoing:
        """The exact bytes that `stream` would send for the same arguments; sends nothing."""
        return wire.encode(self.options, request, prefix)

    def wait_s(self) -> float:
        """Seconds until this remote may be asked; 0 when it may be now. Asks nobody."""
        network = 0.0 if self.options.is_loopback else self.connectivity.wait_s()
        return max(network, self.breaker.wait_s())

    def stream(self, request: Request, prefix: str = "") -> RemoteStream:
        """The answer as events, going on from `prefix`, which is text of the assistant.

        At the first `next`, before `Start`: Refused and UsageError (nothing was sent), RemoteFailed
        (an Unreachable), NotFound, ContextFull. After `Start`: BrokenOff.
        """
        call = Call(
            self.options, request, self.outgoing(request, prefix), self.breaker, self.connectivity
        )
        return RemoteStream(call)


class RemoteStream:
    """The events of one answer. `close` ends it at once, from any thread."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._events: Generator[Event, None, None] = call.events()

    @property
    def attempts(self) -> int:
        """Requests made so far."""
        return self._call.attempts

    @property
    def maybe_billed(self) -> int:
        """How many of them came to no answer and may be charged all the same."""
        return self._call.maybe_billed

    def close(self) -> None:
        """Closes the socket; a thread that waits for the next event gets StopIteration."""
        self._call.watch.cancel()
        # "generator already executing": the thread that waits in it was just woken, and ends it.
        with suppress(ValueError):
            self._events.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
