"""How far from the float weights: the numbers are right, and what is too far is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm_export import fidelity
from edgellm_export.checks import SelfCheckFailed
from edgellm_export.fidelity import Fidelity, measure, token_count
from edgellm_export.recipe import Limits, Recipe, recipe
from edgellm_export.weights import Float32


def logits(seed: int, tokens: int = 37, size: float = 3.0) -> Float32:
    rng = np.random.default_rng(seed)
    return (size * rng.standard_normal((tokens, 50))).astype(np.float32)


def naive_kl(expected: Float32, found: Float32) -> float:
    """In float64, from the definition."""
    p, q = (np.exp(x.astype(np.float64)) for x in (expected, found))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return float((p * np.log(p / q)).sum(axis=1).mean())


def test_the_divergence_is_the_one_of_the_definition() -> None:
    expected = logits(0)
    for noise in (0.01, 0.5, 2.0):
        found = expected + noise * logits(1, size=1.0)
        measured = measure(expected, found)
        assert measured.kl == pytest.approx(naive_kl(expected, found), rel=1e-3)
        same = expected.argmax(axis=1) == found.argmax(axis=1)
        assert measured.top1 == same.mean()
        assert measured.tokens == 37


def test_a_shift_of_all_logits_is_no_difference() -> None:
    expected = logits(2)
    measured = measure(expected, expected + 100)
    assert measured.kl < 1e-6
    assert measured.top1 == 1


def test_tokens_count_as_sure_that_have_more_than_half() -> None:
    expected = np.zeros((4, 10), np.float32)
    expected[:3, 1] = 5.0  # 94 % of the probability
    expected[3, 1] = 1.0  # 23 %
    found = expected.copy()
    found[2] = 0.0
    found[2, 5] = found[3, 7] = 9.0
    measured = measure(expected, found)
    assert (measured.sure_tokens, measured.top1) == (3, 0.5)
    assert measured.sure_top1 == pytest.approx(2 / 3)
    assert measure(expected[3:], found[3:]).sure_top1 is None


GOOD = Fidelity(tokens=300, kl=0.01, top1=0.9, sure_tokens=150, sure_top1=0.99)
STRICT = replace(recipe("int4"), limits=Limits(0.1, 0.95))


def test_within_the_limits_is_good_enough() -> None:
    GOOD.check(STRICT)
    replace(GOOD, kl=0.1, sure_top1=0.95).check(STRICT)


@pytest.mark.parametrize("worse", [{"kl": 0.11}, {"kl": float("nan")}, {"sure_top1": 0.9}])
def test_a_bundle_beyond_a_limit_is_refused_with_both_numbers(worse: dict[str, float]) -> None:
    with pytest.raises(SelfCheckFailed) as caught:
        replace(GOOD, **worse).check(STRICT)
    message = str(caught.value)
    shown = replace(GOOD, **worse)
    assert f"mean KL from the float weights is {shown.kl:.3g} (int4 allows 0.1)" in message
    assert f"{shown.sure_top1:.0%} of 150 sure tokens (95% needed)" in message
    assert message.endswith("use --calibrate or more bits")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("made_by", "advice"),
    [(recipe("exact"), "report this"), (recipe("int4").calibrated(), "; use more bits")],
)
def test_the_advice_is_one_that_can_help(made_by: Recipe, advice: str) -> None:
    with pytest.raises(SelfCheckFailed, match=advice):
        replace(GOOD, kl=9.0).check(made_by)


def test_a_model_that_is_sure_of_next_to_nothing_is_judged_by_its_divergence() -> None:
    replace(GOOD, sure_tokens=fidelity.SURE_TOKENS - 1, sure_top1=0.1).check(STRICT)
    replace(GOOD, sure_tokens=0, sure_top1=None).check(STRICT)
    with pytest.raises(SelfCheckFailed):
        replace(GOOD, sure_tokens=fidelity.SURE_TOKENS, sure_top1=0.1).check(STRICT)


@pytest.mark.parametrize(
    ("vocabulary", "context", "tokens"),
    [(300, 4096, 256), (300, 128, 128), (128_256, 8192, 130), (262_144, 32_768, 64)],
)
def test_a_large_vocabulary_is_compared_on_fewer_tokens(
    vocabulary: int, context: int, tokens: int
) -> None:
    assert token_count(vocabulary, context) == tokens


def test_the_sample_begins_with_a_line_of_its_own() -> None:
    first, _, rest = fidelity.sample().partition("\n")
    assert first.isascii() is False
    assert len(rest) > 1500
