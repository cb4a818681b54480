"""Token ids become text: whole characters, nothing of a stop string, logprobs beside their text.

    tokens ── TextStream.push ──▶ characters ── StopGate.push ──▶ Delta

The token loop knows no text and this module knows no model. Closing `deltas` closes the tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from edgellm.stream import Delta, TokenLogprob


@dataclass(frozen=True, slots=True)
class Token:
    """A decoded token; `logprob` None when nobody asked. `top` holds its (id, logprob) rivals;
    `entropy` and `margin` as in stream.TokenLogprob."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    entropy: float | None = None
    margin: float | None = None


class TextStream(Protocol):
    """Ids in, characters out as soon as they are whole."""

    def push(self, token_id: int, /) -> str: ...

    def finish(self) -> str: ...


def deltas(
    tokens: Generator[Token, None, object],
    stream: TextStream,
    stop: Sequence[str],
    piece: Callable[[int], str],
) -> Generator[Delta, None, str | None]:
    """The text of `tokens` as Deltas; returns the stop string that ended it, None if none did.

    Token logprobs leave with the first character of their token; those of a stop string never do.
    `piece` spells one token for them.
    """
    gate = StopGate(stop)
    waiting: deque[tuple[int, TokenLogprob]] = deque()

    def leaving(last: bool = False) -> tuple[TokenLogprob, ...]:
        ready = []
        while waiting and (last or waiting[0][0] < gate.passed):
            ready.append(waiting.popleft()[1])
        return tuple(ready)

    with closing(tokens):
        for token in tokens:
            if token.logprob is not None:
                waiting.append((gate.seen, _spelled(token, token.logprob, piece)))
            text = gate.push(stream.push(token.id))
            if text:
                yield Delta(text, leaving())
            if gate.matched is not None:
                return gate.matched
    text = gate.push(stream.finish())
    if gate.matched is None:
        text += gate.release()
    rest = leaving(last=gate.matched is None)
    if text or rest:
        yield Delta(text, rest)
    return gate.matched


def _spelled(token: Token, logprob: float, piece: Callable[[int], str]) -> TokenLogprob:
    rivals = tuple((piece(rival), rival, value) for rival, value in token.top)
    return TokenLogprob(piece(token.id), token.id, logprob, rivals, token.entropy, token.margin)


class StopGate:
    """Lets text through up to the first stop string, however the text is cut into pieces.

    Text that may be the start of a stop string waits until it is known not to be. The match that
    is complete first wins; of those complete at the same character, the longest.

    seen, passed  how many characters came in, and how many were let out
    matched       the stop string found; from then on nothing comes out
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._matchers = [_Matcher(text) for text in stop]
        self._held = ""
        self.seen = 0
        self.passed = 0
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that may leave now that `text` came in."""
        if self.matched is not None:
            return ""
        self.seen += len(text)
        pending = self._held + text
        for end, character in enumerate(text, len(self._held) + 1):
            self.matched = self._step(character)
            if self.matched is not None:
                self._held = ""
                return self._let_out(pending[: end - len(self.matched)])
        keep = max((matcher.length for matcher in self._matchers), default=0)
        self._held = pending[len(pending) - keep :]
        return self._let_out(pending[: len(pending) - keep])

    def release(self) -> str:
        """The text still held, when no more will come."""
        held, self._held = self._held, ""
        return self._let_out(held)

    def _step(self, character: str) -> str | None:
        complete = [matcher.text for matcher in self._matchers if matcher.step(character)]
        return max(complete, key=len, default=None)

    def _let_out(self, text: str) -> str:
        self.passed += len(text)
        return text


class _Matcher:
    """Knuth-Morris-Pratt over one stop string: `length` of it are the end of what came so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.length = 0
        # Where to go on when the character after a prefix of each length does not fit.
        self._shorter = [0] * (len(text) + 1)
        for end in range(2, len(text) + 1):
            self._shorter[end] = self._extended(self._shorter[end - 1], text[end - 1])

    def step(self, character: str) -> bool:
        """Whether `character` completes the string."""
        self.length = self._extended(self.length, character)
        return self.length == len(self.text)

    def _extended(self, length: int, character: str) -> int:
        while length and self.text[length] != character:
            length = self._shorter[length]
        return length + 1 if self.text[length] == character else 0
