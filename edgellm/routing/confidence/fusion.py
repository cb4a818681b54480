"""From signals to P(correct): two small models of the signals, a probe of the hidden states, and a
gate that lets the probe speak only about prompts like those it was fitted on.

    features ── logistic ─┐
             └─ boosted ──┴ mean ── isotonic ─────────── far ──┐
    hidden ──── probe ────┴ mean of three ── isotonic ── near ─┴─▶ P(correct)

Hidden states know the task and its difficulty. On prompts like the graded ones that helps; on
tasks never graded it misleads, and the tokens alone are better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgellm.routing.confidence import boosted, isotonic, logistic
from edgellm.routing.confidence.boosted import Boosted
from edgellm.routing.confidence.isotonic import Isotonic
from edgellm.routing.confidence.logistic import Logistic
from edgellm.stream import Hidden

Float64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Standardised hidden states are many and the graded answers few: a heavy penalty.
PROBE_RIDGE = 100.0
FOLDS = 5
# A prompt is near when it is as close to a graded one as this share of those are to each other.
NEAR_SHARE = 0.95
# Graded prompts kept to measure nearness, at most.
LANDMARKS = 256


@dataclass(frozen=True, slots=True)
class Material:
    """Graded answers: features (N, F), prompt and answer states (N, D) or None, what was right
    (N,), and the groups (N,) that folds must not cut through (templates)."""

    features: Float64
    prompts: Float64 | None
    answers: Float64 | None
    correct: Bools
    groups: NDArray[np.str_]

    def rows(self, keep: NDArray[np.int64] | Bools) -> Material:
        prompts = None if self.prompts is None else self.prompts[keep]
        answers = None if self.answers is None else self.answers[keep]
        return Material(
            self.features[keep], prompts, answers, self.correct[keep], self.groups[keep]
        )


@dataclass(frozen=True, slots=True)
class Tokens:
    """Log-odds of the signals alone."""

    logistic: Logistic
    boosted: Boosted

    def __call__(self, features: Float64) -> Float64:
        odds: Float64 = (self.logistic(features) + self.boosted(features)) / 2
        return odds


@dataclass(frozen=True, slots=True)
class Near:
    """Which prompts are like the graded ones: the distance of a prompt's state to the nearest
    landmark, every dimension in its own standard deviations."""

    landmarks: NDArray[np.float32]
    centre: Float64
    spread: Float64
    most: float
    _known: Float64 = field(init=False, repr=False, compare=False)
    _squares: Float64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for after every answer, so what does not change is computed once.
        object.__setattr__(self, "_known", self.landmarks.astype(np.float64))
        object.__setattr__(self, "_squares", (self._known**2).sum(axis=1))

    def __call__(self, prompts: Float64) -> Bools:
        """(N,) of prompt states (N, D)."""
        near: Bools = self.distance(prompts) <= self.most
        return near

    def distance(self, prompts: Float64) -> Float64:
        """(N,), by |a - b|² = |a|² - 2ab + |b|²."""
        asked = (prompts - self.centre) / self.spread
        squares = self._squares - 2 * asked @ self._known.T
        least: Float64 = (asked**2).sum(axis=1) + squares.min(axis=1)
        distance: Float64 = np.sqrt(np.maximum(least, 0) / prompts.shape[1])
        return distance


@dataclass(frozen=True, slots=True)
class Fusion:
    """P(correct) of answers. Without probe or hidden states the tokens decide alone."""

    tokens: Tokens
    alone: Isotonic
    probe: Logistic | None
    together: Isotonic | None
    near: Near | None

    def __call__(
        self, features: Float64, prompts: Float64 | None, answers: Float64 | None
    ) -> Float64:
        """P(correct) (N,) of features (N, F) and states (N, D)."""
        odds = self.tokens(features)
        p = self.alone(odds)
        if self.probe is None or self.near is None or self.together is None:
            return p
        if prompts is None or answers is None:
            return p
        joined = self.together(_joined(odds, self.probe(answers)))
        return np.where(self.near(prompts), joined, p)


def _joined(tokens: Float64, probe: Float64) -> Float64:
    """The tokens count as the two models they are."""
    joined: Float64 = (2 * tokens + probe) / 3
    return joined


def fit(material: Material, with_probe: bool) -> Fusion:
    """The fusion fitted to all of `material`; its calibrators see only what models said of answers
    that they were not fitted on."""
    tokens = fit_tokens(material.features, material.correct)
    odds = out_of_fold(material, lambda m: _token_score(m))
    alone = isotonic.fit(odds, material.correct)
    if not with_probe or material.answers is None or material.prompts is None:
        return Fusion(tokens, alone, None, None, None)
    probe = logistic.fit(material.answers, material.correct, PROBE_RIDGE)
    probed = out_of_fold(material, _probe_score)
    together = isotonic.fit(_joined(odds, probed), material.correct)
    return Fusion(tokens, alone, probe, together, fit_near(material.prompts))


def fit_tokens(features: Float64, correct: Bools) -> Tokens:
    return Tokens(logistic.fit(features, correct, ridge=30.0), boosted.fit(features, correct))


Score = Callable[[Material], Float64]


def _token_score(train: Material) -> Score:
    fitted = fit_tokens(train.features, train.correct)
    return lambda test: fitted(test.features)


def _probe_score(train: Material) -> Score:
    if train.answers is None:
        raise ValueError("a probe needs hidden states")
    fitted = logistic.fit(train.answers, train.correct, PROBE_RIDGE)
    return lambda test: fitted(test.answers if test.answers is not None else np.empty((0, 0)))


def out_of_fold(material: Material, fitted: Callable[[Material], Score]) -> Float64:
    """A score (N,) for every answer by a model that saw no answer of its group."""
    names, place = np.unique(material.groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[place] % FOLDS
    scores = np.zeros(len(material.correct))
    for i in range(FOLDS):
        held = fold == i
        if held.any():
            scores[held] = fitted(material.rows(~held))(material.rows(held))
    return scores


def fit_near(prompts: Float64) -> Near:
    """Landmarks drawn from the graded prompts, and how close the others come to them."""
    order = np.random.default_rng(0).permutation(len(prompts))
    chosen, rest = order[:LANDMARKS], order[LANDMARKS:]
    centre, spread = prompts.mean(axis=0), np.maximum(prompts.std(axis=0), 1e-9)
    landmarks = ((prompts[chosen] - centre) / spread).astype(np.float32)
    near = Near(landmarks, centre, spread, np.inf)
    if not len(rest):
        return near
    return replace(near, most=float(np.quantile(near.distance(prompts[rest]), NEAR_SHARE)))


def stack(states: list[Hidden | None]) -> tuple[Float64 | None, Float64 | None]:
    """Prompt and answer states (N, D) of observations; None when one has none."""
    known = [state for state in states if state is not None]
    if not known or len(known) < len(states):
        return None, None
    prompts = np.array([state.prompt_mean for state in known], np.float64)
    return prompts, np.array([state.answer_mean for state in known], np.float64)
