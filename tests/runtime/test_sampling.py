"""Sampling against a slow, plain reference in float64 and Python lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.errors import EdgellmError
from edgellm.runtime.penalties import make_penalties
from edgellm.runtime.sampling import logprobs, make_sampler, make_shortlist
from edgellm.stream import Sampling

Float32 = NDArray[np.float32]
HUGE = float(np.finfo(np.float32).max)
# How near to a boundary (as a probability) float32 and float64 may decide differently.
BOUNDARY = 1e-5


def softmax(values: Sequence[float], temperature: float = 1.0) -> list[float]:
    best = max(values)
    weights = [math.exp((v - best) / temperature) for v in values]
    total = math.fsum(weights)
    return [w / total for w in weights]


def reference(logits: Float32, s: Sampling) -> list[int]:
    """The kept ids, best first; cases at a boundary are given up by `assume`."""
    x = [float(v) for v in logits]
    kept = sorted((i for i in range(len(x)) if x[i] > -math.inf), key=lambda i: (-x[i], i))
    kept = kept[: s.top_k or len(x)]
    if s.top_p < 1:
        sums = np.cumsum(softmax([x[i] for i in kept]))
        assume(np.abs(sums - s.top_p).min() > BOUNDARY)
        kept = kept[: int(np.searchsorted(sums, s.top_p)) + 1]
    if s.min_p > 0:
        ratios = [math.exp(x[i] - x[kept[0]]) for i in kept]
        assume(min(abs(ratio - s.min_p) for ratio in ratios[1:] or [9.0]) > BOUNDARY)
        kept = [i for i, ratio in zip(kept, ratios, strict=True) if ratio >= s.min_p]
    return kept


@st.composite
def vocabularies(draw: st.DrawFn) -> Float32:
    """Logits of every temper: peaked or flat, coarse (many ties) or not, partly forbidden."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1, 2, 7, 255, 256, 257, 1500, 4099]))
    logits = rng.standard_normal(size) * draw(st.sampled_from([0.001, 1.0, 3.0, 20.0]))
    if draw(st.booleans()):
        logits = np.round(logits * 4) / 4
    if draw(st.booleans()):
        logits[rng.random(size) < 0.7] = -np.inf
        logits[rng.integers(size)] = 1.0
    return logits.astype(np.float32)


settings_of_all_kinds = st.builds(
    Sampling,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 1.5, 10.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 300, 100_000]),
    top_p=st.sampled_from([1.0, 0.001, 0.317, 0.513, 0.9, 0.953, 0.9991]),
    min_p=st.sampled_from([0.0, 0.0, 0.0501, 0.31, 1.0]),
)


@settings(deadline=None, max_examples=200)
@given(vocabularies(), settings_of_all_kinds)
def test_kept_tokens_and_their_probabilities_equal_the_reference(
    logits: Float32, s: Sampling
) -> None:
    kept = reference(logits, s)
    shortlist = make_shortlist(s)(logits, ())
    found = dict(zip(shortlist.ids.tolist(), shortlist.probabilities().tolist(), strict=True))
    expected = dict(
        zip(kept, softmax([float(logits[i]) for i in kept], s.temperature), strict=True)
    )
    # Forbidden tokens may stay on the list when nothing was cut, with probability 0.
    assert {i for i in found if logits[i] > -np.inf} == set(kept)
    assert found == pytest.approx(expected | dict.fromkeys(set(found) - set(kept), 0.0), abs=1e-6)
    assert sorted(found) == shortlist.ids.tolist()


@settings(deadline=None, max_examples=200)
@given(vocabularies(), settings_of_all_kinds, st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_inverse_of_the_cumulative_distribution_best_token_first(
    logits: Float32, s: Sampling, uniform: float
) -> None:
    kept = reference(logits, s)
    sums = np.cumsum(softmax([float(logits[i]) for i in kept], s.temperature))
    assume(np.abs(sums[:-1] - uniform).min(initial=1) > 1e-6)
    expected = kept[min(int(np.searchsorted(sums, uniform)), len(kept) - 1)]
    assert make_shortlist(s)(logits, ()).draw(uniform) == expected


def test_a_draw_deep_in_a_flat_tail_is_still_exact() -> None:
    logits = np.random.default_rng(5).standard_normal(49_152).astype(np.float32)
    s = Sampling(temperature=1.3)
    shortlist, order = make_shortlist(s)(logits, ()), np.argsort(-logits, kind="stable")
    sums = np.cumsum(softmax(logits[order].tolist(), s.temperature))
    drawn = [shortlist.draw(u / 64) for u in range(64)]
    wanted = [int(np.searchsorted(sums, u / 64)) for u in range(64)]
    ranks = np.argsort(order)
    # float32 weights may move a boundary by one rank in a tail of nearly equal tokens.
    assert np.abs(ranks[drawn] - wanted).max() <= 1


def test_draws_at_both_ends_give_the_best_and_the_last_token() -> None:
    shortlist = make_shortlist(Sampling(temperature=1.0))(np.float32([0, 2, -np.inf, 1]), ())
    assert shortlist.draw(0.0) == 1
    assert shortlist.draw(1 - 2**-53) == 0


def test_the_last_draw_never_gives_a_token_without_probability() -> None:
    rng = np.random.default_rng(1)
    shortlist = make_shortlist(Sampling(temperature=1.0))
    for _ in range(200):
        logits = rng.uniform(-60, 0, 240).astype(np.float32)
        logits[200:] = -500  # exp(-500) is 0 in float32
        assert shortlist(logits, ()).draw(1 - 2**-53) < 200


def test_sampling_follows_the_distribution() -> None:
    logits = np.log(np.float32([0.5, 0.3, 0.2]))
    sample = make_sampler(Sampling(temperature=1.0, seed=7))
    counts = np.bincount([sample(logits, ()) for _ in range(4000)], minlength=3) / 4000
    assert counts == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    sample = make_sampler(Sampling())
    assert sample(np.float32([1, 5, 5, 0]), ()) == 1
    assert sample.seed is None


@given(vocabularies(), st.sampled_from([1e-5, 1e-30, 1e-300]))
def test_a_tiny_temperature_is_greedy(logits: Float32, temperature: float) -> None:
    best = int(logits.argmax())
    rivals = np.delete(logits, best)
    assume(rivals.size == 0 or rivals.max() < logits[best] - np.float32(0.01))
    assert make_sampler(Sampling(temperature=temperature, seed=1))(logits, ()) == best


@pytest.mark.parametrize(
    "s",
    [
        Sampling(),
        Sampling(temperature=0.7, seed=3),
        Sampling(temperature=100.0, top_k=2, top_p=0.9, min_p=0.1, seed=3),
        Sampling(temperature=0.7, repeat_penalty=10.0, frequency_penalty=2.0, seed=3),
        Sampling(temperature=1e-300, repeat_penalty=0.01, top_p=1e-9, seed=3),
    ],
)
def test_extreme_logits_neither_overflow_nor_lose_the_best_token(s: Sampling) -> None:
    logits = np.float32([-HUGE, HUGE, -np.inf, -HUGE, 0])
    assert make_sampler(s)(logits, (0, 3)) == 1
    assert make_sampler(s)(np.float32([-HUGE, -np.inf]), (0, 0)) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_vocabulary_of_one_token_always_gives_it(temperature: float) -> None:
    s = Sampling(temperature=temperature, top_k=40, top_p=0.5, min_p=1.0, repeat_penalty=1.3)
    assert make_sampler(s)(np.float32([-3]), (0, 0)) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("presence", [0.0, 1.0])
def test_broken_logits_are_an_error_that_says_where(temperature: float, presence: float) -> None:
    sample = make_sampler(Sampling(temperature=temperature, presence_penalty=presence))
    for value, word in ((np.nan, "NaN"), (np.inf, "infinite")):
        with pytest.raises(EdgellmError, match=rf"{word} logits at token 3 \(id 1 of 4\)"):
            sample(np.float32([0, value, 2, 3]), (1, 2, 3))
    with pytest.raises(EdgellmError, match="no token is allowed"):
        sample(np.full(4, -np.inf, np.float32), ())


def test_the_seed_reproduces_and_a_drawn_seed_is_reported() -> None:
    logits = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    first = make_sampler(Sampling(temperature=1.0))
    again = make_sampler(Sampling(temperature=1.0, seed=first.seed))
    other = make_sampler(Sampling(temperature=1.0))
    draws = [[s(logits, ()) for _ in range(20)] for s in (first, again, other)]
    assert draws[0] == draws[1] != draws[2]
    assert first.seed != other.seed


def test_a_seed_gives_these_numbers_on_every_numpy() -> None:
    sample = make_sampler(Sampling(temperature=1.0, seed=42))
    assert [sample(np.zeros(1000, np.float32), ()) for _ in range(4)] == [773, 438, 858, 697]


def test_every_token_costs_one_number_however_many_were_kept() -> None:
    flat, peaked = np.zeros(500, np.float32), np.eye(1, 500, dtype=np.float32)[0] * 99
    a, b = (make_sampler(Sampling(temperature=1.0, top_p=0.9, seed=9)) for _ in range(2))
    for _ in range(5):
        a(flat, ())
        b(peaked, ())
    assert a(flat, ()) == b(flat, ())


def test_the_models_logits_are_never_changed() -> None:
    logits = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    logits.flags.writeable = False
    for temperature in (0.0, 0.8):
        s = Sampling(temperature, 40, 0.9, 0.05, 1.2, 0.5, 0.5)
        make_sampler(s)(logits, (1, 2, 3))
    logprobs(logits, 0, 5)


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=6, max_size=6),
    st.lists(st.integers(0, 7), max_size=12),
    st.sampled_from([1.0, 0.5, 1.3]),
    st.sampled_from([0.0, 0.7, -2.0]),
    st.sampled_from([0.0, 0.4, -1.0]),
    st.integers(0, 13),
)
def test_penalties_equal_a_naive_loop_over_the_window(
    values: list[float],
    context: list[int],
    repeat: float,
    presence: float,
    frequency: float,
    window: int,
) -> None:
    s = Sampling(
        repeat_penalty=repeat,
        presence_penalty=presence,
        frequency_penalty=frequency,
        penalty_window=window,
    )
    expected = list(values)
    recent = context if window == 0 else context[-window:]
    for i in range(6):  # ids 6 and 7 are in the context but have no logit
        if i in recent:
            expected[i] *= 1 / repeat if expected[i] > 0 else repeat
            expected[i] -= presence + frequency * recent.count(i)
    penalise = make_penalties(s)
    found = np.float32(values) if penalise is None else penalise(np.float32(values), context)
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_window_of_zero_is_the_whole_context() -> None:
    context = (0, *[1] * 5000)
    everywhere = make_sampler(Sampling(presence_penalty=1.0, penalty_window=0))
    nearby = make_sampler(Sampling(presence_penalty=1.0, penalty_window=4999))
    logits = np.float32([2, 1.5, 1.2])
    assert (everywhere(logits, context), nearby(logits, context)) == (2, 0)


def test_neutral_penalties_are_left_out_of_the_chain() -> None:
    assert make_penalties(Sampling(penalty_window=8)) is None


def test_a_penalty_changes_the_greedy_choice() -> None:
    logits = np.float32([2, 1.9, -1])
    assert make_sampler(Sampling(repeat_penalty=1.2))(logits, (0,)) == 1
    assert make_sampler(Sampling(repeat_penalty=1.2, penalty_window=1))(logits, (0, 2)) == 0


@given(vocabularies(), st.integers(0, 20), st.data())
def test_logprobs_are_a_log_softmax_with_the_best_rivals_first(
    logits: Float32, top: int, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, logits.size - 1))
    x = logits.astype(np.float64)
    exact = x - x.max() - np.log(np.exp(x - x.max()).sum())
    logprob, rivals = logprobs(logits, token, top)
    order = [int(i) for i in np.argsort(-x, kind="stable") if x[i] > -np.inf][:top]
    assert logprob == pytest.approx(exact[token], rel=1e-6, abs=1e-6)
    assert [i for i, _ in rivals] == order
    assert [p for _, p in rivals] == pytest.approx(exact[order].tolist(), rel=1e-6, abs=1e-6)
