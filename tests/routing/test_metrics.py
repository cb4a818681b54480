from __future__ import annotations

import numpy as np
import pytest

from edgellm.routing.evaluation import metrics

RIGHT = np.array([True, True, False, True, False])


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    trust = np.array([0.9, 0.5, 0.5, 0.4, 0.1])
    # Pairs of right and wrong: (.9,.5) (.9,.1) (.5,.1) (.4,.1) won, (.5,.5) tied, (.4,.5) lost.
    assert metrics.auroc(trust, RIGHT) == pytest.approx(4.5 / 6)
    assert metrics.auroc(-trust, RIGHT) == pytest.approx(1.5 / 6)


def test_auroc_of_one_kind_of_answers_is_unknown() -> None:
    assert np.isnan(metrics.auroc(np.arange(3.0), np.ones(3, bool)))


def test_within_averages_groups_and_leaves_out_those_that_say_nothing() -> None:
    trust = np.array([1.0, 0.0, 0.0, 1.0, 0.5])
    correct = np.array([True, False, True, False, True])
    groups = np.array(["a", "a", "b", "b", "c"])
    assert metrics.within(trust, correct, groups) == pytest.approx(0.5)


def test_a_perfect_order_has_no_excess_risk() -> None:
    assert metrics.excess_aurc(RIGHT.astype(float), RIGHT) == 0
    assert metrics.excess_aurc(-RIGHT.astype(float), RIGHT) > 0.3


def test_ece_and_brier_of_a_constant_are_its_distance_from_the_truth() -> None:
    p = np.full(5, 0.9)
    assert metrics.ece(p, RIGHT) == pytest.approx(0.3)
    assert metrics.brier(p, RIGHT) == pytest.approx((3 * 0.01 + 2 * 0.81) / 5)


def test_the_oracle_asks_for_wrong_answers_only() -> None:
    remote = np.ones(5)
    perfect = metrics.curve(metrics.oracle(RIGHT, remote), RIGHT, remote)
    assert perfect.accuracy.tolist() == pytest.approx([0.6, 0.8, 1.0, 1.0, 1.0, 1.0])
    assert perfect.calls_for(0.95) == pytest.approx(0.4)
    assert perfect.gap_calls(0.5) == pytest.approx(0.2)


def test_with_a_perfect_remote_apgr_is_a_line_in_auroc() -> None:
    # APGR = e/2 + (1 - e) AUROC for an error rate e (and no ties), exact for many answers.
    random = np.random.default_rng(0)
    correct = random.random(4000) < 0.55
    trust = random.normal(0, 1, 4000) + correct
    error = 1 - correct.mean()
    expected = error / 2 + (1 - error) * metrics.auroc(trust, correct)
    assert metrics.curve(trust, correct, np.ones(4000)).apgr() == pytest.approx(expected, abs=1e-3)


def test_calls_are_unknown_where_the_remote_is_no_better() -> None:
    worse = metrics.curve(np.arange(5.0), RIGHT, np.full(5, 0.1))
    assert np.isnan(worse.gap_calls(0.5))
    assert np.isnan(worse.apgr())


def test_an_interval_covers_the_value_and_narrows_with_more_templates() -> None:
    random = np.random.default_rng(1)
    correct = random.random(400) < 0.5
    trust = random.normal(0, 1, 400) + correct

    def width(clusters: int) -> float:
        names = np.array([f"t{i % clusters}" for i in range(400)])
        low, high = metrics.interval(lambda i: metrics.auroc(trust[i], correct[i]), names, 300)
        assert low < metrics.auroc(trust, correct) < high
        return high - low

    assert width(400) < 0.2
    assert width(3) > 0
