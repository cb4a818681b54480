"""One answer on its way to the screen; `run` and `chat` share it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgellm.cli.terminal import Screen
from edgellm.errors import EdgellmError
from edgellm.stream import Backend, Delta, Done, Event, Replace, Request, Start, TokenLogprob


@contextmanager
def answering(model: Backend, request: Request) -> Iterator[Iterator[Event]]:
    """The events of an answer; leaving the block, by whatever way, stops the work behind them."""
    events = _closable(model.stream(request))
    try:
        yield events
    finally:
        events.close()


def _closable(events: Iterator[Event]) -> Generator[Event, None, None]:
    # `yield from` hands `close` on where the iterator behind it has one.
    yield from events


def begin(events: Iterator[Event], screen: Screen) -> Start:
    """The Start of an answer, its notices shown; raises the refusal when there is one."""
    for event in events:
        if isinstance(event, Start):
            for notice in event.notices:
                screen.note(notice)
            return event
        break
    raise EdgellmError("the model did not start an answer; its backend is broken")


@dataclass
class Playback:
    """Prints the pieces of an answer and keeps them, also when it is interrupted."""

    screen: Screen
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)

    def play(self, events: Iterator[Event]) -> Done:
        """Prints until Done and returns it. The output ends with a newline, however it ends."""
        try:
            for event in events:
                match event:
                    case Delta():
                        self.text += event.text
                        self.tokens += event.logprobs
                        self.screen.answer(event.text)
                    case Replace():
                        self.text = ""
                        self.tokens.clear()
                        self.screen.end_line()
                        self.screen.note(f"the answer above is replaced: {event.reason}")
                    case Done():
                        self.screen.end_line()
                        return event
        except BrokenPipeError:
            raise
        except BaseException:
            self.screen.end_line()
            raise
        raise EdgellmError("the answer ended without Done; the backend is broken")


def cut_short(
    done: Done, max_tokens: int, longer: str = "a larger -n", roomier: str = "a larger --ctx"
) -> str:
    """Why an answer stopped before its end, and what to do about it."""
    tokens = done.usage.completion_tokens
    if tokens >= max_tokens:
        return f"stopped at {tokens} tokens (-n); {longer} allows a longer answer"
    return f"stopped at {tokens} tokens: the context is full; {roomier} makes room"
