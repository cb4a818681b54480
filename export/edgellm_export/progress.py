"""How an export tells whoever waits: lines, and steps done of steps. Nobody is told by default."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Notice = Callable[[str], None]
# Given a label and how many steps there are, a context with a function that takes those done.
Steps = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def silent(line: str) -> None:
    """Takes a line and shows it to nobody."""


def uncounted(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Counts nothing."""
    return nullcontext(_ignore)


def _ignore(done: int) -> None:
    pass
