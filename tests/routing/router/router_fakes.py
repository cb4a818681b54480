"""Stand-ins behind the router's seams; none of them knows the router."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from edgellm.errors import BudgetExhausted, EdgellmError, Unreachable
from edgellm.routing.errors import BrokenOff
from edgellm.routing.router import Router
from edgellm.routing.seams import Card, Record, Remote, RemoteEvents, Verdict
from edgellm.routing.signals import Observed
from edgellm.stream import (
    Delta,
    Done,
    Event,
    Hidden,
    Replace,
    Request,
    Route,
    Start,
    Timings,
    TokenLogprob,
    Usage,
)

TIMINGS = Timings(0.0, 1.0, 100.0, 100.0)
QUESTION = Request.user("why?")


@dataclass
class Voice:
    """A source that says its words; `onward` where it goes on from given text.

    fails: raised before word number `fails_at`; 0 is before Start. `pause_s` goes before the first
    word, in short naps that `gone` ends.
    """

    name: str
    words: Sequence[str]
    onward: Sequence[str] = ("and", " so", " on")
    fails: EdgellmError | None = None
    fails_at: int = 0
    pause_s: float = 0.0
    logprob: float = -0.1
    maybe_billed: int = 0
    asked: list[tuple[Request, str]] = field(default_factory=list)
    open: int = 0
    said: int = 0
    gone: threading.Event = field(default_factory=threading.Event)

    def stream(self, request: Request, prefix: str = "") -> Generator[Event, None, None]:
        self.asked.append((request, prefix))
        self.open += 1
        try:
            yield from self._say(request, prefix)
        finally:
            self.open -= 1

    def _say(self, request: Request, prefix: str) -> Iterator[Event]:
        words = (self.onward if prefix else self.words)[: request.max_tokens]
        if self.fails is not None and self.fails_at == 0:
            raise self.fails
        yield Start(self.name, 7)
        self.gone.wait(self.pause_s)
        for number, word in enumerate(words, 1):
            if self.fails is not None and self.fails_at == number:
                raise self.fails
            self.said += 1
            seen = (TokenLogprob(word, number, self.logprob, (), 0.5, 1.0),)
            yield Delta(word, seen if request.logprobs is not None else ())
        hidden = Hidden((1.0,), (1.0,), (1.0,)) if request.observe else None
        yield Done("stop", Usage(7, len(words)), TIMINGS, route=self.route(), hidden=hidden)

    def route(self) -> Route:
        return Route()


@dataclass(frozen=True)
class FakePrice:
    usd_per_token: float = 1e-6

    def cost_usd(self, usage: Usage) -> float:
        return self.usd_per_token * (usage.prompt_tokens + usage.completion_tokens)


@dataclass(frozen=True)
class FakeCard:
    model: str = "big"
    attempts: int = 1
    tier: int = 0
    context_tokens: int | None = None
    capabilities: frozenset[str] = frozenset()
    price: FakePrice | None = FakePrice()


class FakeRemote:
    """A remote with a voice, which only the guard below uses."""

    def __init__(self, voice: Voice, card: FakeCard | None = None, wait_s: float = 0.0) -> None:
        self.options: Card = card or FakeCard(voice.name)
        self.voice = voice
        self._wait_s = wait_s

    def wait_s(self) -> float:
        return self._wait_s


class Stream:
    """The events of a voice; closing ends its pause too, from any thread."""

    def __init__(self, voice: Voice, request: Request, prefix: str) -> None:
        self._voice = voice
        self._events: Generator[Event, None, None] = voice.stream(request, prefix)
        self.closed = False
        self.maybe_billed = voice.maybe_billed

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = next(self._events)
        if self.closed:
            self._events.close()
            raise StopIteration
        return event

    def close(self) -> None:
        self.closed = True
        self._voice.gone.set()
        if not self._events.gi_running:
            self._events.close()


class FakeGuard:
    """Judges by one verdict and counts what went out."""

    def __init__(self, verdict: Verdict | None = None) -> None:
        self.verdict = verdict or Verdict()
        self.judged = 0
        self.sent: list[Request] = []
        self.streams: list[Stream] = []

    def judge(self, request: Request, whole: Request | None = None) -> Verdict:
        self.judged += 1
        return self.verdict

    def stream(
        self, remote: Remote, request: Request, prefix: str = "", whole: Request | None = None
    ) -> RemoteEvents:
        assert isinstance(remote, FakeRemote)
        self.sent.append(request)
        self.streams.append(Stream(remote.voice, request, prefix))
        return self.streams[-1]


@dataclass
class FakeReservation:
    settled: list[Usage] = field(default_factory=list)
    refunds: int = 0

    def settle(self, usage: Usage) -> float:
        self.settled.append(usage)
        return 0.25

    def refund(self) -> None:
        self.refunds += 1

    @property
    def times(self) -> int:
        return len(self.settled) + self.refunds


class FakeBudget:
    def __init__(self, denial: str | None = None, refuses: bool = False) -> None:
        self._denial = denial
        self._refuses = refuses
        self.made: list[FakeReservation] = []

    def denial(self, card: Card, prompt_tokens: int, max_tokens: int) -> str | None:
        return self._denial

    def reserve(self, card: Card, prompt_tokens: int, max_tokens: int) -> FakeReservation:
        if self._refuses:
            raise BudgetExhausted("the day's budget is used up; wait until tomorrow")
        self.made.append(FakeReservation())
        return self.made[-1]


class FakePack:
    """A confidence pack by two rules."""

    def __init__(
        self,
        after: Callable[[Observed], float] | float = 0.9,
        before: Callable[[Observed], float | None] | float | None = None,
    ) -> None:
        self._after = after
        self._before = before
        self.seen: list[Observed] = []

    def before(self, observed: Observed) -> float | None:
        self.seen.append(observed)
        return self._before(observed) if callable(self._before) else self._before

    def after(self, observed: Observed) -> float:
        self.seen.append(observed)
        return self._after(observed) if callable(self._after) else self._after


class FakeLedger:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        self.records.append(record)


@dataclass(frozen=True)
class Shown:
    """What a reader who knows Replace has in the end."""

    start: Start | None
    text: str
    replaced: tuple[str, ...]
    done: Done

    @property
    def route(self) -> Route:
        return self.done.route


def read(router: Router, request: Request = QUESTION) -> Shown:
    """Plays an answer to its end, checking the order of its events."""
    events = list(router.stream(request))
    starts = [event for event in events if isinstance(event, Start)]
    assert len(starts) == 1
    assert events[0] is starts[0]
    assert isinstance(events[-1], Done)
    assert sum(isinstance(event, Done) for event in events) == 1
    text, replaced = "", []
    for event in events:
        match event:
            case Delta():
                text += event.text
            case Replace():
                text = ""
                replaced.append(event.reason)
    return Shown(starts[0], text, tuple(replaced), events[-1])


def local(**changes: object) -> Voice:
    return Voice("small", ("I", " am", " small"), **changes)  # type: ignore[arg-type]


def remote(**changes: object) -> Voice:
    return Voice("big", ("I", " am", " big"), **changes)  # type: ignore[arg-type]


def unreachable() -> EdgellmError:
    return Unreachable("big: connection refused; check the address")


def broken(text: str = "") -> EdgellmError:
    error = BrokenOff("big broke off after 2 tokens: the connection ended too early")
    error.text = text
    return error


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Waits for another thread."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()
