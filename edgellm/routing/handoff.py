"""One reader, several sources: what was shown, what is held back, and how a source follows another.

Deltas wait in the hold-back window first. While nothing was shown, another source simply starts:
nobody sees it. After that it goes on from the shown text where it can (`prefill`), or the reader is
told that the text is void (`Replace`), or, for readers that do not know Replace, a mark is set.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from edgellm.errors import EdgellmError
from edgellm.routing.options import RouterOptions
from edgellm.routing.watch import Watch
from edgellm.stream import Delta, Done, Event, Replace, Start, Timings, Usage

MARK = "\n\n[the answer starts again from another model]\n\n"


@dataclass(frozen=True, slots=True)
class Ended:
    """How playing a source ended. `unsure`: the watch gave it up; `done` None: before its end."""

    done: Done | None
    unsure: bool = False


class Relay:
    """What one reader has been shown of one answer, whoever said it."""

    def __init__(self, options: RouterOptions, with_logprobs: bool) -> None:
        self.options = options
        self.shown = False
        self.first_shown_s = 0.0
        self._with_logprobs = with_logprobs
        self._start: Start | None = None
        self._started = False
        self._visible = ""
        self._answer_from = 0
        self._held: list[Delta] = []
        self._held_since_s = 0.0
        self._tokens = 0

    @property
    def text(self) -> str:
        """The answer of the present source so far, with what is held back."""
        return self._visible[self._answer_from :] + "".join(delta.text for delta in self._held)

    @property
    def visible(self) -> str:
        """All that the reader sees."""
        return self._visible

    @property
    def tokens(self) -> int:
        """About how many tokens `text` has: pieces, each of one token or more."""
        return self._tokens

    @property
    def prompt_tokens(self) -> int:
        """Those of the source that the reader knows of; 0 while there is none."""
        return self._start.prompt_tokens if self._start is not None else 0

    def play(
        self, events: Iterator[Event], watch: Watch | None = None, hold_back: bool = False
    ) -> Generator[Event, None, Ended]:
        """Shows a source until its end, or until the watch gives it up.

        hold_back: what it says waits in the window, since another source may say it anew.
        """
        holding = hold_back
        for event in events:
            match event:
                case Start():
                    self._start = self._start or event
                case Delta():
                    self._hold(event)
                case Replace():
                    yield from self.void(event.reason)
            unsure = watch is not None and watch.see(event, self.options)
            if isinstance(event, Done):
                return Ended(event, unsure)
            if unsure:
                return Ended(None, unsure=True)
            holding = holding and self._window_open()
            if not holding and self._held:
                yield from self.flush()
        raise EdgellmError("the answer ended without Done; its backend is broken")

    def _hold(self, delta: Delta) -> None:
        self._tokens += 1
        if not self._held:
            self._held_since_s = time.perf_counter()
        self._held.append(delta)

    def _window_open(self) -> bool:
        if self.shown or not self._held:
            return not self.shown
        waited_ms = (time.perf_counter() - self._held_since_s) * 1e3
        return (
            len(self._held) < self.options.hold_back_tokens
            and waited_ms < self.options.hold_back_ms
        )

    def flush(self) -> Generator[Event, None, None]:
        """Shows what was held back, after the Start."""
        if not self._started and self._start is not None:
            self._started = True
            yield self._start
        held, self._held = self._held, []
        for delta in held:
            piece = delta if self._with_logprobs else replace(delta, logprobs=())
            if not (piece.text or piece.logprobs):
                continue
            self.shown = True
            self.first_shown_s = self.first_shown_s or time.perf_counter()
            self._visible += piece.text
            yield piece

    def void(self, reason: str) -> Generator[Event, None, None]:
        """The answer starts again: unseen where nothing was shown, else announced."""
        self._held.clear()
        self._tokens = 0
        if not self.shown:
            self._start = None if not self._started else self._start
            return
        if self.options.handoff == "append":
            self._visible += MARK
            self._answer_from = len(self._visible)
            yield Delta(MARK)
            return
        self._visible, self._answer_from, self.shown = "", 0, False
        yield Replace(reason)


def until_stop(
    events: Generator[Event, None, None], said: str, stop: Sequence[str]
) -> Generator[Event, None, None]:
    """The events of a source that goes on from `said`, ended before a stop text across the seam.

    The new source knows nothing of the old one's last characters, so only texts that begin there
    are looked for; what of them was shown already stays.
    """
    longest = max((len(text) for text in stop), default=0) - 1
    tail = said[-longest:] if longest > 0 else ""
    waiting: list[Delta] = []
    tokens = 0
    for event in events:
        if not tail or not isinstance(event, Delta):
            yield from waiting
            waiting.clear()
            yield event
            continue
        tokens += 1
        waiting.append(event)
        new = "".join(delta.text for delta in waiting)
        if any(_crosses(tail, new, text) for text in stop):
            events.close()
            yield Done("stop", Usage(0, tokens), Timings(0.0, 0.0, 0.0, 0.0))
            return
        if not any(_may_cross(tail, new, text) for text in stop):
            tail = ""
            yield from waiting
            waiting.clear()


def _crosses(tail: str, new: str, stop: str) -> bool:
    """Whether `stop` begins in `tail` and ends in `new`."""
    return any(tail.endswith(stop[:n]) and new.startswith(stop[n:]) for n in range(1, len(stop)))


def _may_cross(tail: str, new: str, stop: str) -> bool:
    """Whether it may yet, once more has come."""
    return any(tail.endswith(stop[:n]) and stop[n:].startswith(new) for n in range(1, len(stop)))
