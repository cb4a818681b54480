from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.errors import UsageError
from edgellm.routing.confidence.certify import binomial_cdf, certify
from edgellm.routing.evaluation.certificates import best_share, check


def exact_cdf(k: int, n: int, p: float) -> float:
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@pytest.mark.parametrize(
    ("k", "n", "p"), [(0, 30, 0.1), (4, 100, 0.1), (12, 200, 0.1), (7, 9, 0.5)]
)
def test_the_binomial_tail_is_exact(k: int, n: int, p: float) -> None:
    assert binomial_cdf(k, n, p) == pytest.approx(exact_cdf(k, n, p), rel=1e-10)


@pytest.mark.parametrize(
    ("errors", "kept", "risk"), [(0, 30, 0.1), (4, 100, 0.1), (12, 200, 0.1), (29, 400, 0.1),
                                 (0, 59, 0.05), (4, 200, 0.05), (12, 400, 0.05)]
)  # fmt: skip
def test_the_counts_of_the_literature_are_the_largest_that_pass(
    errors: int, kept: int, risk: float
) -> None:
    assert binomial_cdf(errors, kept, risk) <= 0.05 < binomial_cdf(errors + 1, kept, risk)


def population(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.random(count)
    return scores, random.random(count) < scores


def test_a_certificate_keeps_more_where_the_risk_allowed_is_higher() -> None:
    scores, correct = population(2000, 1)
    shares = [certify(scores, correct, risk).share_kept for risk in (0.05, 0.1, 0.2, 0.3)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.4


def test_the_counts_in_a_certificate_are_those_at_its_threshold() -> None:
    scores, correct = population(2000, 2)
    found = certify(scores, correct, 0.2)
    assert found.threshold is not None
    kept = scores >= found.threshold
    assert (found.kept, found.wrong) == (kept.sum(), (kept & ~correct).sum())
    assert found.p_value <= 0.05
    assert f"keep P(correct) >= {found.threshold:.3f}" in found.line()


def test_too_few_answers_cannot_be_certified_and_that_is_said() -> None:
    found = certify(np.full(20, 0.99), np.ones(20, bool), 0.1)
    assert found.threshold is None
    assert found.share_kept == 0
    assert "cannot certify a risk of 10%" in found.line()


def test_a_signal_without_information_certifies_nothing() -> None:
    random = np.random.default_rng(3)
    found = certify(random.random(1000), random.random(1000) < 0.5, 0.1)
    assert found.threshold is None


def test_no_answers_at_all_certify_nothing() -> None:
    assert certify(np.zeros(0), np.zeros(0, bool), 0.1).threshold is None


@pytest.mark.parametrize("risk", [0.0, 1.0, -1.0, 7.0])
def test_a_risk_outside_its_range_is_refused(risk: float) -> None:
    with pytest.raises(UsageError, match="risk must be between 0 and 1"):
        certify(np.ones(3), np.ones(3, bool), risk)


def test_certificates_of_many_draws_are_violated_no_more_often_than_allowed() -> None:
    scores, correct = population(1600, 4)
    found = check(scores, correct, 0.2, draws=200)
    assert found.certified == 200
    # 5 % allowed; 10 of 200 give or take two standard errors of three each.
    assert found.violations <= 17
    assert 0.5 * found.best_share < found.kept_share <= found.best_share + 0.02


def test_hindsight_keeps_everything_where_nothing_is_wrong() -> None:
    assert best_share(np.linspace(0.1, 0.9, 50), np.ones(50, bool), 0.1) == 1.0
