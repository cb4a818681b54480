from __future__ import annotations

import numpy as np

from edgellm.routing.signals import FEATURES, Observed, features, quantiles, repeated
from edgellm.stream import TokenLogprob


def observed(logprobs: list[float], text: str = "x", prompt: str = "y") -> Observed:
    tokens = tuple(TokenLogprob("", i, lp, (), -lp, 1.0) for i, lp in enumerate(logprobs))
    return Observed(prompt, 10, tokens, "stop", None, text)


def value(seen: Observed, name: str) -> float:
    return float(features(seen)[FEATURES.index(name)])


def test_every_name_has_a_number() -> None:
    assert features(observed([-0.1, -2.0])).shape == (len(FEATURES),)
    assert len(set(FEATURES)) == len(FEATURES)


def test_signals_are_what_their_names_say() -> None:
    seen = observed([-0.5, -3.0, -0.1, -0.2])
    assert value(seen, "logprob_q0") == -3.0
    assert value(seen, "logprob_second_lowest") == -0.5
    assert np.isclose(value(seen, "logprob_mean"), -0.95)
    assert value(seen, "logprob_first") == -0.5
    assert value(seen, "lowest_at") == 0.25
    assert value(seen, "entropy_q1") == 3.0
    assert value(seen, "guess_share") == 0.25


def test_quantiles_do_not_grow_with_the_length_of_an_answer_as_sums_do() -> None:
    short, long = observed([-0.3] * 4), observed([-0.3] * 400)
    assert value(short, "logprob_q0.5") == value(long, "logprob_q0.5")
    assert value(short, "logprob_sum") > value(long, "logprob_sum")


def test_an_answer_without_tokens_has_finite_signals() -> None:
    assert np.all(np.isfinite(features(observed([]))))


def test_loops_are_seen() -> None:
    assert repeated([1, 2, 3, 4, 5, 6]) == 0
    assert repeated([1, 2, 3] * 20) > 0.9
    assert repeated([1]) == 0


def test_quantiles_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 64):
        rising = np.sort(random.normal(0, 1, count))
        shares = (0.0, 0.05, 0.25, 0.5, 0.9, 1.0)
        np.testing.assert_allclose(quantiles(rising, shares), np.quantile(rising, shares))
