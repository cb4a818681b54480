"""An answer as it grows: pieces of text from a reply, and at the end the figures of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from edgellm.routing.remote import wire
from edgellm.routing.remote.sse import Events, Unreadable
from edgellm.routing.remote.wire import Chunk
from edgellm.routing.tokens import token_estimate
from edgellm.stream import Delta, FinishReason, TokenLogprob, Usage

# The longest answers of 128,000 tokens with twenty alternatives each stay below it.
ANSWER_LIMIT_BYTES = 1 << 28
# Without streaming the whole answer is one text in memory, three times over.
DOCUMENT_LIMIT_BYTES = 1 << 25


class Unfit(Exception):
    """What came is no chat answer, or the answer says itself that it failed; one clause.

    A `refusal` is meant: the remote is well, and would say the same again.
    """

    def __init__(self, why: str, error: object = None, refusal: bool = False) -> None:
        super().__init__(why)
        self.error = error
        self.refusal = refusal


@dataclass(slots=True)
class Answer:
    """`read` the chunks of a reply; the other fields are what is known so far.

    `echo` is text the remote was given to go on from: some (llama.cpp) say it again first, and then
    it is left out.
    """

    echo: str = ""
    text: str = ""
    finish: str | None = None
    usage: object = None
    reasoning: bool = False
    streamed: bool = True
    pieces: int = 0
    _events: Events = field(default_factory=Events)
    _half: str = ""
    _held: Delta = field(default_factory=lambda: Delta(""))

    @property
    def malformed(self) -> int:
        return self._events.malformed

    @property
    def ended(self) -> bool:
        """Whether the server said that this is all."""
        return self.finish is not None or (self._events.finished and bool(self.text))

    @property
    def finish_reason(self) -> FinishReason:
        """ "stop" also for words we do not know: the answer has ended, which is what they say."""
        return wire.FINISHED.get(self.finish or "stop", "stop")

    def read(self, chunks: Iterator[bytes]) -> Iterator[Delta | None]:
        """Pieces of text; None is a sign of life. Unfit when the reply is no answer."""
        head, chunks = _peek(_limited(chunks))
        if head == b"{":
            self.streamed = False
            objects: Iterable[dict[str, Any]] = [_document(chunks)]
        elif head == b"<":
            raise Unfit("it answers with a web page")
        else:
            objects = self._events.read(chunks)
        try:
            for raw in objects:
                yield from self._take(raw)
        except Unreadable as error:
            raise Unfit(str(error)) from None
        # Half of a character that never became whole is left out.
        if self._held.text:
            yield self._spoken(self._held)

    def _take(self, raw: dict[str, Any]) -> Iterator[Delta | None]:
        try:
            chunk = wire.decode(raw)
        except ValueError:
            self._events.malformed += 1
            chunk = Chunk()
        if chunk.error is not None:
            raise Unfit("it reports an error", chunk.error)
        if chunk.tools or chunk.finish in ("tool_calls", "function_call"):
            raise Unfit("it calls a tool, and none was offered", refusal=True)
        if chunk.finish == "content_filter":
            raise Unfit("its content filter stopped the answer", refusal=True)
        self.usage = chunk.usage or self.usage
        self.finish = chunk.finish or self.finish
        self.reasoning |= chunk.reasoning
        yield from self._say(chunk.text, chunk.logprobs)
        if chunk.reasoning or (chunk.finish and self.text):
            yield None

    def _say(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> Iterator[Delta]:
        """JSON may spell a character as two halves, and a server may send them apart."""
        text = self._half + text
        self._half = text[-1] if text and "\ud800" <= text[-1] < "\udc00" else ""
        text = _whole(text.removesuffix(self._half) if self._half else text)
        if not (text or logprobs):
            return
        delta = Delta(self._held.text + text, self._held.logprobs + logprobs)
        if self.echo and len(delta.text) < len(self.echo) and self.echo.startswith(delta.text):
            self._held = delta
            return
        rest = delta.text.removeprefix(self.echo)
        self.echo, self._held = "", Delta("")
        if rest:
            yield self._spoken(Delta(rest, delta.logprobs))

    def _spoken(self, delta: Delta) -> Delta:
        self.text += delta.text
        self.pieces += 1
        return delta

    def count(self, prompt_estimate: int, max_tokens: int) -> tuple[Usage, str | None]:
        """The token counts, and why they are ours when the server's are missing or impossible."""
        likely = min(token_estimate(self.text), max_tokens)
        own = Usage(prompt_estimate, max(likely, self.pieces))
        if self.usage is None:
            return own, "token counts are estimated: the server reports none"
        told = wire.read_usage(self.usage)
        if told is None or told.prompt_tokens < 1 or (self.text and told.completion_tokens < 1):
            return own, "token counts are estimated: the server's are impossible"
        if told.completion_tokens > max_tokens and not self.reasoning:
            return own, f"token counts are estimated: the server's exceed the {max_tokens} allowed"
        return told, None


def _whole(text: str) -> str:
    """`text` without lone halves of characters, which no terminal can show."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _limited(chunks: Iterator[bytes]) -> Iterator[bytes]:
    received = 0
    for chunk in chunks:
        received += len(chunk)
        if received > ANSWER_LIMIT_BYTES:
            raise Unfit(f"more than {ANSWER_LIMIT_BYTES >> 20} MiB")
        yield chunk


def _peek(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first byte that is no space, and all chunks. Content types are too often wrong."""
    seen = []
    for chunk in chunks:
        seen.append(chunk)
        if first := chunk.lstrip()[:1]:
            return first, chain(seen, chunks)
    return b"", iter(seen)


def _document(chunks: Iterator[bytes]) -> dict[str, Any]:
    body = b""
    for chunk in chunks:
        body += chunk
        if len(body) > DOCUMENT_LIMIT_BYTES:
            raise Unfit(f"one document of more than {DOCUMENT_LIMIT_BYTES >> 20} MiB")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Unfit("it answers with broken JSON") from None
    if not isinstance(found, dict):
        raise Unfit("it answers with JSON that is no object")
    return found
