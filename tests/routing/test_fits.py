"""The models behind a pack: each learns what it is for, and nothing from noise."""

from __future__ import annotations

import numpy as np

from edgellm.routing.confidence import boosted, fusion, isotonic, logistic
from edgellm.routing.confidence.fusion import Float64, Material
from edgellm.routing.evaluation.metrics import auroc, ece


def test_logistic_regression_finds_the_weights_that_made_the_data() -> None:
    random = np.random.default_rng(0)
    features = random.normal(3, 2, (20_000, 3))
    odds = (features - 3) @ np.array([1.0, -0.5, 0.0]) + 0.7
    model = logistic.fit(features, random.random(20_000) < logistic.sigmoid(odds), ridge=1e-3)
    np.testing.assert_allclose(model.weights / model.scale, [1.0, -0.5, 0.0], atol=0.05)
    np.testing.assert_allclose(model(features), odds, atol=0.35)


def test_logistic_regression_survives_classes_that_separate_and_constant_features() -> None:
    features = np.column_stack([np.linspace(-1, 1, 50), np.ones(50)])
    model = logistic.fit(features, features[:, 0] > 0, ridge=1.0)
    assert np.all(np.isfinite(model.weights))
    assert model.weights[1] == 0
    assert auroc(model(features), features[:, 0] > 0) == 1.0


def test_boosted_trees_learn_an_interaction_that_a_line_cannot() -> None:
    random = np.random.default_rng(1)
    features = random.normal(0, 1, (3000, 5))
    correct = features[:, 0] * features[:, 1] > 0
    trees = boosted.fit(features[:2000], correct[:2000])
    line = logistic.fit(features[:2000], correct[:2000])
    assert auroc(trees(features[2000:]), correct[2000:]) > 0.9
    assert auroc(line(features[2000:]), correct[2000:]) < 0.6


def test_boosting_twice_gives_the_same_trees() -> None:
    random = np.random.default_rng(2)
    features, correct = random.normal(0, 1, (300, 6)), random.random(300) < 0.5
    first, second = boosted.fit(features, correct), boosted.fit(features, correct)
    np.testing.assert_array_equal(first(features), second(features))


def test_trees_go_the_same_way_in_fitting_and_in_use() -> None:
    # Values that lie exactly on bin edges: fitted bins and stored thresholds must agree.
    features = np.tile(np.arange(10.0), 40)[:, None]
    correct = features[:, 0] >= 5
    trees = boosted.fit(features, correct, boosted.Settings(share_features=1.0, trees=60))
    assert np.all((trees(features) > 0) == correct)


def test_isotonic_probabilities_rise_with_the_score_and_match_the_outcomes() -> None:
    random = np.random.default_rng(3)
    scores = random.normal(0, 2, 4000)
    correct = random.random(4000) < logistic.sigmoid(scores / 2)
    line = isotonic.fit(scores[:3000], correct[:3000])
    p = line(scores[3000:])
    assert ece(p, correct[3000:]) < 0.06
    assert np.all(np.diff(line(np.linspace(-9, 9, 200))) >= 0)
    assert line.probabilities.min() > 0
    assert line.probabilities.max() < 1


def test_isotonic_of_answers_that_are_all_right_is_not_certain() -> None:
    line = isotonic.fit(np.arange(3.0), np.ones(3, bool))
    assert 0.5 < float(line(np.array([1.0]))[0]) < 1


def material(count: int, seed: int, shift: float = 0.0) -> Material:
    """Hidden states tell the answers apart around the origin; far away they say the opposite."""
    random = np.random.default_rng(seed)
    correct = random.random(count) < 0.5
    lean = np.where(correct, 1.0, -1.0)
    features = random.normal(0, 1, (count, 4)) + 0.5 * lean[:, None]
    prompts = random.normal(0, 1, (count, 12)) + shift
    answers = random.normal(0, 1, (count, 12)) + (lean if not shift else -lean)[:, None]
    groups = np.array([f"t{i % 12}" for i in range(count)])
    return Material(features, prompts, answers, correct, groups)


def test_the_probe_helps_near_the_graded_prompts_and_is_silent_far_from_them() -> None:
    fitted = fusion.fit(material(900, 4), with_probe=True)
    near, far = material(400, 5), material(400, 6, shift=8.0)
    with_probe = fitted(near.features, near.prompts, near.answers)
    alone = fitted(near.features, None, None)
    assert auroc(with_probe, near.correct) > auroc(alone, near.correct) + 0.02
    silent = fitted(far.features, far.prompts, far.answers)
    np.testing.assert_array_equal(silent, fitted(far.features, None, None))


def test_out_of_fold_scores_never_come_from_a_model_that_saw_the_group() -> None:
    seen = material(240, 7)

    def remember(train: Material) -> fusion.Score:
        known = set(train.groups)
        return lambda test: np.array([float(g in known) for g in test.groups])

    assert fusion.out_of_fold(seen, remember).max() == 0


def test_trees_asked_together_say_what_each_says_alone() -> None:
    random = np.random.default_rng(3)
    features = random.normal(0, 1, (300, 6))
    model = boosted.fit(features, features[:, 0] * features[:, 1] > 0)

    def walk(row: Float64) -> float:
        odds = model.bias
        for chosen, cuts, leaves in zip(
            model.features, model.thresholds, model.leaves, strict=True
        ):
            node = 0
            while node < len(chosen):
                node = 2 * node + 1 + int(row[chosen[node]] >= cuts[node])
            odds += leaves[node - len(chosen)]
        return float(odds)

    np.testing.assert_allclose(model(features), [walk(row) for row in features])
    np.testing.assert_allclose(model(features[:1]), model(features)[:1])
