"""What a request wants to know of its answer beside the text: log-probabilities, hidden states.

A router reads them, so they come from the pass that makes the answer and from no other.
Shapes: V vocabulary, T new tokens, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.cache import KVCache
from edgellm.runtime.sampling import logprobs
from edgellm.runtime.text import Token
from edgellm.stream import Hidden

Float32 = NDArray[np.float32]
Describe = Callable[[Float32, int], Token]  # logits (V,), the id chosen from them


class Shows(Protocol):
    """What a Watcher needs of a session."""

    def forward_hidden(
        self, ids: Sequence[int], rows: Sequence[int], cache: KVCache, /
    ) -> tuple[Float32, Float32]: ...


def plain(logits: Float32, token_id: int) -> Token:
    """The token and nothing about it."""
    return Token(token_id)


def make_describe(top: int | None, observe: bool) -> Describe:
    """How tokens are described: with `top` rivals (None: not even their log-probability), and with
    entropy and margin when they are to be observed."""
    if observe:
        return lambda logits, token_id: observed(logits, token_id, top or 0)
    if top is None:
        return plain
    rivals = top
    return lambda logits, token_id: Token(token_id, *logprobs(logits, token_id, rivals))


def observed(logits: Float32, token_id: int, top: int) -> Token:
    """The token with its log-probability, `top` rivals, the entropy of the distribution in nats,
    and how many nats the best token lies above the next (inf when it is the only one).

    H = log Z + sum(depth * weight) / Z, where depth is the distance from the best logit and Z the
    sum of the weights exp(-depth): one exponential a token, no probabilities in memory.
    """
    best = int(logits.argmax())
    peak = float(logits[best])
    depth = np.subtract(logits, peak)  # 0 or less
    weights = np.exp(depth)
    total = float(weights.sum(dtype=np.float64))
    with np.errstate(invalid="ignore"):
        mean = float(np.dot(depth, weights)) / total
    if math.isnan(mean):  # -inf * 0: tokens that a constraint forbids have no part in the entropy
        allowed = weights > 0
        mean = float(np.dot(depth[allowed], weights[allowed])) / total
    depth[best] = -np.inf
    margin = -float(depth.max())
    log_total = math.log(total)
    rivals = logprobs(logits, token_id, top)[1] if top else ()
    logprob = float(logits[token_id]) - peak - log_total
    return Token(token_id, logprob, rivals, max(log_total - mean, 0.0), margin)


class Watcher:
    """A session that remembers the hidden states of what passes through it.

    The first `prompt_tokens` of the cache are the prompt; what the cache held before is not seen
    again, so the prompt's mean is over the tokens that are prefilled now.
    """

    def __init__(self, session: Shows, prompt_tokens: int) -> None:
        self._session = session
        self._prompt_tokens = prompt_tokens
        self._last: Float32 | None = None
        self._sums: list[Float32 | None] = [None, None]
        self._counts = [0, 0]

    def forward(self, ids: Sequence[int], rows: Sequence[int], cache: KVCache) -> Float32:
        """The session's logits."""
        answering = len(cache) >= self._prompt_tokens
        logits, hidden = self._session.forward_hidden(ids, rows, cache)
        if not answering:
            self._last = hidden[-1].copy()
        before = self._sums[answering]
        added = hidden.sum(axis=0)
        self._sums[answering] = added if before is None else before + added
        self._counts[answering] += len(ids)
        return logits

    def hidden(self) -> Hidden | None:
        """What was seen; None before a prompt. An answer of which no token went through the model
        (it has none, or one) has the state from which its first token was chosen."""
        if self._last is None or self._sums[0] is None:
            return None
        prompt = self._sums[0] / np.float32(self._counts[0])
        answer = self._last if self._sums[1] is None else self._sums[1] / self._counts[1]
        return Hidden(self._last.tolist(), prompt.tolist(), answer.tolist())
