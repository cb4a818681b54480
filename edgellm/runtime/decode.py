"""The token loop: prefill a prompt, then decode one token after another. Knows no text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.cache import KVCache
from edgellm.runtime.observe import Describe, plain
from edgellm.runtime.text import Token
from edgellm.stream import FinishReason

Float32 = NDArray[np.float32]

# Attention over a chunk computes the whole square, also its upper half: short chunks waste less.
# 128 is also the height of a MatMulNBits tile (MLAS, qnbitgemm.cpp). For 512 tokens of a 135M model
# on 2 Zen 4 cores it was 5 % faster than one chunk of 512 and 2 % faster than chunks of 64.
CHUNK_TOKENS = 128
# With the graph for long prompts: 2 % faster than 128 where both cores share a cache, 17 % where
# they do not; the same virtual machine changes between the two.
LONG_CHUNK_TOKENS = 256


class Forward(Protocol):
    """What the loop needs of a session."""

    def forward(self, ids: Sequence[int], rows: Sequence[int], cache: KVCache, /) -> Float32: ...


class Choose(Protocol):
    """A token id from logits (V,) and the ids before it."""

    def __call__(self, logits: Float32, context_ids: Sequence[int], /) -> int: ...


def prefill(
    session: Forward, cache: KVCache, ids: Sequence[int], filler: Forward | None = None
) -> Float32:
    """Logits (V,) after the last of `ids`, all of which are in the cache then.

    All but the last go through `filler` where there is one.
    """
    if filler is not None:
        before, ids = ids[:-1], ids[-1:]
        for start in range(0, len(before), LONG_CHUNK_TOKENS):
            filler.forward(before[start : start + LONG_CHUNK_TOKENS], [], cache)
    for start in range(0, len(ids), CHUNK_TOKENS):
        chunk = ids[start : start + CHUNK_TOKENS]
        rows = [len(chunk) - 1] if start + len(chunk) == len(ids) else []
        logits = session.forward(chunk, rows, cache)
    last: Float32 = logits[0]
    return last


def decode(
    session: Forward,
    cache: KVCache,
    logits: Float32,
    choose: Choose,
    eos_ids: frozenset[int],
    max_tokens: int,
    describe: Describe = plain,
) -> Generator[Token, None, FinishReason]:
    """Tokens after `logits` (V,), up to an end-of-sequence id, which is not yielded.

    `describe` says of each what the request wants to know. The context of the sampler is what the
    cache holds. Returns why it ended.
    """
    context = list(cache.tokens)
    for done in range(1, max_tokens + 1):
        token = choose(logits, context)
        if token in eos_ids:
            return "stop"
        yield describe(logits, token)
        context.append(token)
        if done < max_tokens:
            logits = session.forward([token], [0], cache)[0]
    return "length"
