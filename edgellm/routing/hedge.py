"""Two sources at once: the second starts late, the first token wins, the loser is cancelled.

Threads live only here. Each source is made, pulled and closed by the thread of its lane.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from edgellm.errors import EdgellmError
from edgellm.routing.attempts import closable
from edgellm.stream import Delta, Done, Event


@dataclass(frozen=True, slots=True)
class Source:
    """How to ask a source, and how long to wait for its end when it is not wanted any more.

    hang_up: ends it from another thread, also while it waits for something.
    """

    open: Callable[[], Iterator[Event]]
    close_s: float
    hang_up: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class _Item:
    lane: int
    event: Event | None = None
    error: BaseException | None = None


class Lane:
    """A source with a thread that pulls it; what comes goes into a queue shared with others."""

    def __init__(self, number: int, source: Source, inbox: queue.SimpleQueue[_Item]) -> None:
        self._number = number
        self._source = source
        self._inbox = inbox
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        name = f"edgellm-lane-{self._number}"
        # A daemon: a remote that is silent must not keep the program from ending.
        self._thread = threading.Thread(target=self._pull, name=name, daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """The source is closed: at once where it can be, else at its next event."""
        self._stopped.set()
        if self._source.hang_up is not None and self.started:
            self._source.hang_up()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(self._source.close_s)

    def _pull(self) -> None:
        try:
            with closing(closable(self._source.open())) as events:
                for event in events:
                    if self._stopped.is_set():
                        return
                    self._inbox.put(_Item(self._number, event))
        # Whatever goes wrong is raised where the answer is read, not lost with the thread.
        except BaseException as error:
            self._inbox.put(_Item(self._number, error=error))
        else:
            self._inbox.put(_Item(self._number))


class Race:
    """The events of whichever source says the first word; `winner` is its index from then on."""

    def __init__(self, sources: Sequence[Source], delay_s: float) -> None:
        self.winner: int | None = None
        self.failures: list[EdgellmError] = []
        self._delay_s = delay_s
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._lanes = [Lane(number, source, self._inbox) for number, source in enumerate(sources)]
        self._opening: list[list[Event]] = [[] for _ in sources]
        self._failed: set[int] = set()

    def run(self) -> Generator[Event, None, None]:
        """Raises the first failure when all sources fail. Closing it ends every source."""
        try:
            self._lanes[0].start()
            second_at = time.monotonic() + self._delay_s
            while self.winner is None:
                self._first_word(second_at)
            for number, lane in enumerate(self._lanes):
                if number != self.winner:
                    lane.cancel()
            yield from self._opening[self.winner]
            yield from self._rest()
        finally:
            for lane in self._lanes:
                lane.cancel()
            for lane in self._lanes:
                lane.join()

    def _first_word(self, second_at: float) -> None:
        waiting = [lane for lane in self._lanes if not lane.started]
        patience = max(second_at - time.monotonic(), 0.0) if waiting else None
        try:
            item = self._inbox.get(timeout=patience)
        except queue.Empty:
            waiting[0].start()
            return
        if item.error is not None:
            self._note_failure(item, waiting)
        elif item.event is None:
            gone = EdgellmError("the answer ended without Done; its backend is broken")
            self._note_failure(_Item(item.lane, error=gone), waiting)
        else:
            self._opening[item.lane].append(item.event)
            word = isinstance(item.event, Delta) and (item.event.text or item.event.logprobs)
            if word or isinstance(item.event, Done):
                self.winner = item.lane

    def _note_failure(self, item: _Item, waiting: Sequence[Lane]) -> None:
        if not isinstance(item.error, EdgellmError):
            raise item.error or EdgellmError("a source failed without saying why")
        self.failures.append(item.error)
        self._failed.add(item.lane)
        if len(self._failed) == len(self._lanes):
            raise self.failures[0]
        if waiting:
            waiting[0].start()

    def _rest(self) -> Iterator[Event]:
        while True:
            item = self._inbox.get()
            if item.lane != self.winner:
                continue
            if item.error is not None:
                raise item.error
            if item.event is None:
                return
            yield item.event
