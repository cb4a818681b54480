"""Server-sent events as chat servers write them: one JSON object a `data:` line, then [DONE].

The parser is wider than the standard in one point: a `data:` line that is JSON by itself counts at
once, because some servers leave the blank lines out. What is no JSON is skipped and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# One token with twenty alternatives is under 4 kB; servers that batch send a few dozen at once.
LINE_LIMIT_BYTES = 1 << 20
# One bad line is an accident of a proxy; this many are no answer.
MALFORMED_LIMIT = 100
# JSON spread over more lines than this is none.
JOINED_LINES = 64
FIELDS = (b"event", b"id", b"retry")


class Unreadable(Exception):
    """This is no event stream; the text says why in one clause."""


@dataclass(slots=True)
class Events:
    """Iterate over `read(chunks)`; `malformed` lines were skipped, `finished` means [DONE] came."""

    malformed: int = 0
    finished: bool = False
    _pending: list[bytes] = field(default_factory=list)

    def read(self, chunks: Iterable[bytes]) -> Iterator[dict[str, object]]:
        """The JSON objects, each as soon as its line is complete, until [DONE] or the end.

        Unreadable when the lines are too long, or too many of them malformed.
        """
        for line in lines(chunks):
            found = self._line(line)
            if self.malformed > MALFORMED_LIMIT:
                raise Unreadable(f"{self.malformed} malformed lines")
            if self.finished:
                return
            if found is not None:
                yield found
        # The last line may have lost its blank line, or half of itself.
        if (found := self._flush()) is not None:
            yield found

    def _line(self, line: bytes) -> dict[str, object] | None:
        if not line:
            return self._flush()
        name, _, value = line.partition(b":")
        if not name or name in FIELDS:
            return None
        if name != b"data":
            self.malformed += 1
            return None
        value = value.removeprefix(b" ")
        if value.strip() == b"[DONE]":
            self.finished = True
            return None
        if (found := _object(value)) is None:
            self._pending.append(value)
        return self._flush() if len(self._pending) >= JOINED_LINES else found

    def _flush(self) -> dict[str, object] | None:
        """What the lines since the last blank one make together: JSON may be spread over them."""
        if not self._pending:
            return None
        found = _object(b"\n".join(self._pending)) if len(self._pending) > 1 else None
        self.malformed += 0 if found is not None else len(self._pending)
        self._pending.clear()
        return found


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, which may be CR, LF or both; the last one may be incomplete."""
    rest = b""
    for chunk in chunks:
        # A CR at the end may be half of a CRLF: it waits for the next chunk.
        *complete, rest = _split(rest + chunk)
        yield from complete
        if len(rest) > LINE_LIMIT_BYTES:
            raise Unreadable("a line without end")
    if rest:
        yield rest.rstrip(b"\r")


def _split(data: bytes) -> list[bytes]:
    held = data.endswith(b"\r")
    body = data[:-1] if held else data
    parts = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    if held:
        parts[-1] += b"\r"
    return parts


def _object(raw: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
