"""The token loop: chunks, ends, and the same tokens as the slow way without a cache."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import pytest
import tiny_models as tiny

from edgellm.bundle.manifest import Shape
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import CHUNK_TOKENS, LONG_CHUNK_TOKENS, decode, prefill
from edgellm.runtime.observe import make_describe
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm.runtime.text import Token
from edgellm_export import reference

VOCAB = 50
SHAPE = Shape("llama", 1, 1, 1, 2, 2, VOCAB, 4096, 100)
NONE: frozenset[int] = frozenset()


class Script:
    """A session that says what it was told to, one token a call."""

    def __init__(self, *says: int) -> None:
        self.says = list(says)
        self.calls: list[tuple[list[int], list[int]]] = []

    def forward(self, ids: Sequence[int], rows: Sequence[int], cache: KVCache) -> np.ndarray:
        self.calls.append((list(ids), list(rows)))
        cache.tokens.extend(ids)
        return np.stack([one_hot(self.says.pop(0)) for _ in rows] or [np.zeros(0, np.float32)])


def one_hot(token: int) -> np.ndarray:
    return np.where(np.arange(VOCAB) == token, np.float32(5), np.float32(0))


def greedy(logits: np.ndarray, context: Sequence[int]) -> int:
    return int(logits.argmax())


def run(tokens: Generator[Token, None, str]) -> tuple[list[int], str]:
    found = []
    while True:
        try:
            found.append(next(tokens).id)
        except StopIteration as ended:
            return found, ended.value


@pytest.fixture
def cache() -> KVCache:
    return KVCache(SHAPE, 1)


@pytest.mark.parametrize("length", [1, 2, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 1000])
def test_a_prompt_is_fed_in_chunks_and_only_its_last_row_is_computed(
    cache: KVCache, length: int
) -> None:
    session, ids = Script(7), [i % VOCAB for i in range(length)]
    logits = prefill(session, cache, ids)
    assert logits.argmax() == 7
    assert cache.tokens == ids
    assert [token for chunk, _ in session.calls for token in chunk] == ids
    assert all(len(chunk) <= CHUNK_TOKENS for chunk, _ in session.calls)
    assert len(session.calls) == -(-length // CHUNK_TOKENS)
    *before, last = session.calls
    assert [rows for _, rows in before] == [[]] * len(before)
    assert last[1] == [len(last[0]) - 1]


@pytest.mark.parametrize("length", [1, 2, LONG_CHUNK_TOKENS + 1, LONG_CHUNK_TOKENS + 2, 600])
def test_all_but_the_last_token_goes_through_the_filler(cache: KVCache, length: int) -> None:
    session, filler, ids = Script(7), Script(), [i % VOCAB for i in range(length)]
    assert prefill(session, cache, ids, filler).argmax() == 7
    assert session.calls == [(ids[-1:], [0])]
    assert [token for chunk, _ in filler.calls for token in chunk] == ids[:-1]
    assert all(0 < len(chunk) <= LONG_CHUNK_TOKENS and not rows for chunk, rows in filler.calls)
    assert cache.tokens == ids


def test_an_end_token_ends_the_answer_and_is_not_part_of_it(cache: KVCache) -> None:
    session = Script(11, 12, 2)
    found, reason = run(decode(session, cache, one_hot(10), greedy, frozenset({2, 3}), 100))
    assert (found, reason) == ([10, 11, 12], "stop")
    assert cache.tokens == [10, 11, 12]


def test_an_end_token_at_once_is_an_empty_answer(cache: KVCache) -> None:
    assert run(decode(Script(), cache, one_hot(2), greedy, frozenset({2}), 5)) == ([], "stop")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_length_limit_ends_the_answer_without_computing_what_nobody_wants(
    cache: KVCache, count: int
) -> None:
    session = Script(11, 12, 13, 14, 15)
    found, reason = run(decode(session, cache, one_hot(10), greedy, NONE, count))
    assert (found, reason) == ([10, 11, 12, 13, 14][:count], "length")
    assert len(session.calls) == count - 1


def test_nothing_is_computed_before_it_is_pulled(cache: KVCache) -> None:
    session = Script(11, 12, 13)
    tokens = decode(session, cache, one_hot(10), greedy, NONE, 10)
    assert session.calls == []
    assert next(tokens).id == 10
    assert session.calls == []
    assert next(tokens).id == 11
    assert session.calls == [([10], [0])]
    tokens.close()
    assert cache.tokens == [10]


def test_the_sampler_sees_the_prompt_and_the_answer(cache: KVCache) -> None:
    seen = []

    def remember(logits: np.ndarray, context: Sequence[int]) -> int:
        seen.append(list(context))
        return int(logits.argmax())

    cache.tokens = [1, 2]
    run(decode(Script(11, 12), cache, one_hot(10), remember, NONE, 3))
    assert seen == [[1, 2], [1, 2, 10], [1, 2, 10, 11]]


def test_log_probabilities_are_those_of_the_logits(cache: KVCache) -> None:
    (token,) = decode(Script(), cache, one_hot(10), greedy, NONE, 1, make_describe(2, False))
    total = np.log(np.exp(5) + VOCAB - 1)
    assert token.logprob == pytest.approx(5 - total, abs=1e-6)
    assert token.top[0][0] == 10
    assert [value for _, value in token.top] == pytest.approx([5 - total, -total], abs=1e-6)
    (token,) = decode(Script(), cache, one_hot(10), greedy, NONE, 1)
    assert (token.logprob, token.top) == (None, ())


def naive(session: Session, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, each from an empty cache and the whole text so far."""
    ids = list(prompt)
    for _ in range(count):
        rows = session.forward(ids, [len(ids) - 1], KVCache(session.shape, len(ids)))
        ids.append(int(rows[0].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 9, 70])
def test_the_cached_loop_says_what_the_loop_without_a_cache_says(
    built: tiny.Built, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.runtime.decode.CHUNK_TOKENS", 32)
    session = Session(built.exact, built.shape, LoadOptions(threads=1))
    prompt = np.random.default_rng(length).integers(0, tiny.vocab_size(), length).tolist()
    cache = KVCache(built.shape, 1)
    found, reason = run(decode(session, cache, prefill(session, cache, prompt), greedy, NONE, 40))
    assert found == naive(session, prompt, 40)
    assert reason == "length"
    # And the numpy forward pass, which shares no code with either, agrees at every step.
    logits = reference.forward(built.config, built.stored, prompt + found)
    assert logits.argmax(axis=-1)[length - 1 : -1].tolist() == found
