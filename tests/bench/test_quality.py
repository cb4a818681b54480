"""Quality figures against straightforward numpy on whole arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.bench import quality
from edgellm.bench.quality import Report, Scope, Window
from edgellm.errors import EdgellmError, UsageError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Table:
    """A LogitsSource whose row for a token is a fixed one, given out in chunks of any size."""

    def __init__(self, logits: Float32, chunk: int = 5, bos: Sequence[int] = ()) -> None:
        self.table, self.chunk, self.bos = logits, chunk, list(bos)

    def encode(self, text: str) -> list[int]:
        return self.bos + [ord(character) % len(self.table) for character in text]

    def logits(self, ids: list[int]) -> Iterator[Float32]:
        buffer = np.empty((self.chunk, self.table.shape[1]), np.float32)
        for start in range(0, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
            buffer[: len(part)] = self.table[part]  # one buffer, as a session would have
            yield buffer[: len(part)]


def random_table(seed: int, vocabulary: int = 40, scale: float = 3.0) -> Float32:
    noise = np.random.default_rng(seed).standard_normal((vocabulary, vocabulary))
    return (noise * scale).astype(np.float32)


def log_softmax(logits: Float32) -> Float64:
    x = logits.astype(np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def plain_report(
    scored: list[Window], model: Float32, reference: Float32 | None = None
) -> tuple[float, ...]:
    """All rows at once: perplexity, and mean KL, 99th percentile, agreement."""
    rows = [w.ids[i] for w in scored for i in range(w.first - 1, len(w.ids) - 1)]
    targets = [w.ids[i] for w in scored for i in range(w.first, len(w.ids))]
    ours = log_softmax(model[rows])
    perplexity = math.exp(-ours[np.arange(len(rows)), targets].mean())
    if reference is None:
        return (perplexity,)
    theirs = log_softmax(reference[rows])
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    agreed = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    return perplexity, kl.mean(), np.percentile(kl, 99, method="inverted_cdf"), agreed


@given(st.integers(0, 99), st.integers(1, 13), st.integers(1, 13), st.booleans())
def test_a_report_equals_plain_numpy_for_any_chunks(
    seed: int, chunk: int, other_chunk: int, score_all: bool
) -> None:
    model, reference = random_table(seed), random_table(seed + 1000)
    ids = np.random.default_rng(seed).integers(0, 40, 100).tolist()
    scored = list(quality.windows(ids, Scope(37, 16, score_all)))
    report = quality.evaluate(scored, Table(model, chunk), Table(reference, other_chunk))
    found = (report.perplexity, report.kl_mean, report.kl_p99, report.top1_agreement)
    assert found == pytest.approx(plain_report(scored, model, reference), rel=1e-9)
    assert report.tokens == 37


def test_without_a_reference_there_is_only_perplexity() -> None:
    model = random_table(1)
    scored = list(quality.windows(list(range(40)), Scope(20, 16)))
    report = quality.evaluate(scored, Table(model))
    assert report == Report(pytest.approx(plain_report(scored, model)[0]), None, None, None, 16)


def test_a_model_does_not_differ_from_itself() -> None:
    table = random_table(2)
    scored = list(quality.windows(list(range(40)), Scope(20, 16)))
    report = quality.evaluate(scored, Table(table), Table(table, 3))
    assert (report.kl_mean, report.kl_p99, report.top1_agreement) == (0.0, 0.0, 1.0)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    scored = list(quality.windows(list(range(40)), Scope(20, 16)))
    report = quality.evaluate(scored, Table(np.full((40, 40), 7, np.float32)))
    assert report.perplexity == pytest.approx(40)


def test_forbidden_tokens_are_zero_in_the_reference_and_infinitely_far_in_the_model() -> None:
    masked, full = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    masked[:, 3] = -np.inf
    window = [Window((0, 1, 2), 1)]
    assert quality.evaluate(window, Table(full), Table(masked)).kl_mean == pytest.approx(
        math.log(4 / 3)
    )
    assert quality.evaluate(window, Table(masked), Table(full)).kl_mean == math.inf
    assert quality.evaluate([Window((0, 3), 1)], Table(masked)).perplexity == math.inf


def test_extreme_logits_stay_finite() -> None:
    table = np.float32([[3e38, -3e38], [-3e38, 3e38]])
    assert quality.evaluate([Window((0, 0), 1)], Table(table)).perplexity == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_are_an_error_not_a_figure(value: float) -> None:
    table = random_table(3)
    table[7, 5] = value
    with pytest.raises(EdgellmError, match="among its 40 logits"):
        quality.evaluate([Window((7, 1), 1)], Table(table))


def test_a_source_that_loses_rows_is_an_error() -> None:
    class Lossy(Table):
        def logits(self, ids: list[int]) -> Iterator[Float32]:
            return super().logits(ids[:-1])

    with pytest.raises(EdgellmError, match="7 rows of logits for 8 tokens"):
        quality.evaluate([Window(tuple(range(8)), 4)], Lossy(random_table(4)))


def test_vocabularies_of_different_size_are_refused() -> None:
    small, large = random_table(5), np.zeros((40, 41), np.float32)
    with pytest.raises(UsageError, match="40 logits and the reference 41"):
        quality.evaluate([Window((1, 2), 1)], Table(small), Table(large))


def test_windows_score_their_second_half_and_exactly_the_tokens_asked_for() -> None:
    found = list(quality.windows(range(100), Scope(12, 10)))
    assert [(w.ids[0], len(w.ids), w.first, w.scored) for w in found] == [
        (0, 10, 5, 5),
        (10, 10, 5, 5),
        (20, 7, 5, 2),
    ]


def test_scoring_all_leaves_out_only_a_token_nothing_precedes() -> None:
    assert [w.first for w in quality.windows(range(20), Scope(99, 10, True))] == [1, 1]
    with_bos = list(quality.windows(range(20), Scope(99, 10, True), prefix=(77,)))
    assert [(w.ids[0], w.first, len(w.ids)) for w in with_bos] == [
        (77, 1, 10),
        (77, 1, 10),
        (77, 1, 3),
    ]
    assert [i for w in with_bos for i in w.ids[w.first :]] == list(range(20))


def test_a_last_window_without_scored_tokens_is_left_out() -> None:
    assert [len(w.ids) for w in quality.windows(range(15), Scope(99, 10))] == [10]
    assert [len(w.ids) for w in quality.windows(range(16), Scope(99, 10))] == [10, 6]


def test_every_window_of_a_text_starts_as_the_model_expects() -> None:
    found = quality.text_windows("abcdefgh" * 5, Scope(12, 9), [Table(random_table(6), bos=[39])])
    assert {w.ids[0] for w in found} == {39}
    assert {(w.first, len(w.ids)) for w in found} == {(5, 9)}
    assert [i for w in found for i in w.ids[1:]] == Table(random_table(6)).encode("abcdefgh" * 3)


def test_a_short_text_and_a_different_tokenizer_are_refused() -> None:
    table = random_table(7)
    with pytest.raises(UsageError, match="has 3 tokens and the first 256"):
        quality.text_windows("abc", Scope(), [Table(table)])
    with pytest.raises(UsageError, match="split the text differently"):
        quality.text_windows("abc" * 99, Scope(), [Table(table), Table(table, bos=[1])])


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"window_tokens": 1}])
def test_an_impossible_scope_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Scope(**wrong)


def test_the_default_text_is_long_english_and_the_same_every_time() -> None:
    text = quality.default_text()
    assert len(text) > 300_000
    assert text.count(" the ") > 2000
    digests = {hashlib.sha256(quality.default_text().encode()).digest() for _ in range(2)}
    assert len(digests) == 1
