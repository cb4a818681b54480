"""What the hub tells the person waiting: notices, how many bytes or steps of how many."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TextIO

Meter = Callable[[int], None]
"""Takes the bytes or steps done so far; bytes may shrink when a transfer starts again."""


class Progress(Protocol):
    def notice(self, line: str) -> None:
        """Show one line the user should see."""
        ...

    def meter(self, label: str, total_bytes: int | None) -> AbstractContextManager[Meter]:
        """A meter for one transfer; `total_bytes` None when nobody knows yet."""
        ...

    def steps(self, label: str, total: int) -> AbstractContextManager[Meter]:
        """A meter for work in `total` steps of about the same length."""
        ...


class Silent:
    """Says nothing: the default of a library."""

    def notice(self, line: str) -> None:
        pass

    def meter(self, label: str, total_bytes: int | None) -> AbstractContextManager[Meter]:
        return nullcontext(_ignore)

    def steps(self, label: str, total: int) -> AbstractContextManager[Meter]:
        return nullcontext(_ignore)


class Terminal:
    """Notices on `stream` (stderr unless told), bars only when it is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream

    def notice(self, line: str) -> None:
        # A server's words may be in it, and control characters could steer the terminal.
        line = "".join(char if char.isprintable() else " " for char in line)
        if self.stream.isatty():
            from tqdm import tqdm

            # tqdm moves a bar that is on the screen out of the way first.
            tqdm.write(line, file=self.stream)
        else:
            self.stream.write(line + "\n")
            self.stream.flush()

    def meter(self, label: str, total_bytes: int | None) -> AbstractContextManager[Meter]:
        if not self.stream.isatty():
            return nullcontext(_ignore)
        return _bar(label, total_bytes, self.stream, unit="B", unit_scale=True)

    def steps(self, label: str, total: int) -> AbstractContextManager[Meter]:
        if not self.stream.isatty():
            return nullcontext(_ignore)
        return _bar(label, total, self.stream, bar_format=STEPS_FORMAT)


# "converting:  40%|████      | 12/30, 00:05 left"
STEPS_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt}, {remaining} left"


@contextmanager
def _bar(label: str, total: int | None, stream: TextIO, **looks: Any) -> Iterator[Meter]:
    from tqdm import tqdm

    with tqdm(desc=label, total=total, file=stream, leave=False, **looks) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        yield show


def _ignore(done: int) -> None:
    pass
