"""The lines of a chat that come through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from edgellm.cli.repl import is_open
from edgellm.errors import UsageError

# As much as `run` takes from a pipe.
TURN_LIMIT_BYTES = 16 << 20


def lines() -> Callable[[], str]:
    """A reader of stdin: a turn a call, a block in three quotes being one; EOFError ends it."""
    turns = _turns()

    def read() -> str:
        try:
            return next(turns)
        except StopIteration:
            raise EOFError from None

    return read


def _turns() -> Iterator[str]:
    turn = ""
    for number, line in enumerate(_raw_lines(), 1):
        turn += _decoded(line, number)
        if not is_open(turn):
            yield turn.rstrip("\r\n")
            turn = ""
    if turn:
        raise UsageError('stdin ended inside a block; close it with """')


def _raw_lines() -> Iterator[bytes]:
    if sys.stdin is not None:
        while line := sys.stdin.buffer.readline(TURN_LIMIT_BYTES):
            yield line


def _decoded(line: bytes, number: int) -> str:
    if len(line) == TURN_LIMIT_BYTES:
        raise UsageError(f"line {number} of stdin has {len(line)} bytes or more; send less")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not valid UTF-8 in line {number}; convert it first") from error
