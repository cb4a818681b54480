"""Ours and every baseline on the same recorded answers: what each signal is worth.

Fitted on the calibration split, measured on a split of other templates. Real here: the local
answers, their grades, and all signals. Simulated: the remote, which is right with a declared
chance on every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.routing.confidence import fusion
from edgellm.routing.confidence.calibrate import LEAST_FOR_PROBE, fit_before, material
from edgellm.routing.confidence.pack import prompt_states
from edgellm.routing.evaluation import metrics
from edgellm.routing.evaluation.baselines import BASELINES, Answers, Baseline, Named
from edgellm.routing.signals import TOKEN_FEATURES

Float64 = NDArray[np.float64]
# The simulated remote of the main table, and the share of its quality to keep.
REMOTE_ACCURACY = 0.97
KEEP_QUALITY = 0.95


def tokens_alone(train: Answers, test: Answers) -> Float64:
    """Token signals without validators and hidden states."""
    known, asked = material(train), material(test)
    width = len(TOKEN_FEATURES)
    fitted = fusion.fit_tokens(known.features[:, :width], known.correct)
    return fitted(asked.features[:, :width])


def tokens_and_validators(train: Answers, test: Answers) -> Float64:
    known, asked = material(train), material(test)
    return fusion.fit_tokens(known.features, known.correct)(asked.features)


def whole(train: Answers, test: Answers) -> Float64:
    """What a pack says after an answer: P(correct)."""
    fitted = fusion.fit(material(train), with_probe=len(train) >= LEAST_FOR_PROBE)
    asked = material(test)
    return fitted(asked.features, asked.prompts, asked.answers)


def before(train: Answers, test: Answers) -> Float64:
    """What a pack says before an answer."""
    fitted = fit_before(train)
    if fitted is None or any(g.observed.hidden is None for g in test):
        return np.full(len(test), np.nan)
    model, calibrator = fitted
    return calibrator(model(np.concatenate([prompt_states(g.observed) for g in test])))


OURS = (
    Named("edgellm, before", "before", before, True),
    Named("edgellm, token signals", "after", tokens_alone, True),
    Named("edgellm, with validators", "after", tokens_and_validators, True),
    Named("edgellm, pack (with gated probe)", "after", whole, True),
)


@dataclass(frozen=True, slots=True)
class Row:
    """AUROC pooled with its 95 % interval, mean within families, leaving each family out of the
    fit, then what deferring by this signal costs."""

    name: str
    when: str
    pooled: float
    interval: tuple[float, float]
    within: float
    left_out: float
    aupr: float
    excess_aurc: float
    calls: float
    apgr: float


def rows(train: Answers, test: Answers, signals: tuple[Named, ...]) -> Iterator[Row]:
    """One row for each signal."""
    for signal in signals:
        trust = signal.score(train, test)
        if np.all(np.isnan(trust)):
            continue
        yield _row(signal, trust, _left_out(signal, train, test, trust), test)


def _row(signal: Named, trust: Float64, left_out: float, test: Answers) -> Row:
    correct, families = _correct(test), _families(test)
    remote = np.full(len(test), REMOTE_ACCURACY)
    deferral = metrics.curve(trust, correct, remote)
    best = metrics.curve(metrics.oracle(correct, remote), correct, remote).apgr()
    clusters = np.array([f"{g.family}/{g.template}" for g in test])
    return Row(
        signal.name,
        signal.when,
        metrics.auroc(trust, correct),
        metrics.interval(lambda i: metrics.auroc(trust[i], correct[i]), clusters),
        metrics.within(trust, correct, families),
        left_out,
        metrics.aupr_wrong(trust, correct),
        metrics.excess_aurc(trust, correct),
        deferral.calls_for(KEEP_QUALITY),
        (deferral.apgr() - 0.5) / (best - 0.5),
    )


def _left_out(signal: Named, train: Answers, test: Answers, trust: Float64) -> float:
    """The mean AUROC within each family, by a fit that never saw that family."""
    correct, families = _correct(test), _families(test)
    if not signal.fitted:
        return metrics.within(trust, correct, families)
    values = []
    for family in np.unique(families):
        here = families == family
        others = tuple(g for g in train if g.family != family)
        asked = tuple(g for g in test if g.family == family)
        values.append(metrics.auroc(signal.score(others, asked), correct[here]))
    return float(np.nanmean(values))


def lift(
    train: Answers, test: Answers, ours: Baseline, theirs: Baseline
) -> tuple[float, float, float]:
    """AUROC of ours minus theirs on the same answers, with the paired 95 % interval."""
    a, b, correct = ours(train, test), theirs(train, test), _correct(test)

    def difference(i: NDArray[np.int64]) -> float:
        return metrics.auroc(a[i], correct[i]) - metrics.auroc(b[i], correct[i])

    clusters = np.array([f"{g.family}/{g.template}" for g in test])
    low, high = metrics.interval(difference, clusters)
    return difference(np.arange(len(test))), low, high


def admitted(train: Answers, signal: Callable[[Answers], Float64] | None = None) -> frozenset[str]:
    """Families in which a signal could tell anything at all: accuracy between 10 and 90 % on some
    level, and the mean log-probability better than a coin (0.60) on the calibration split."""
    score = signal or (lambda graded: BASELINES[8].score((), graded))
    found = set()
    for family in {g.family for g in train}:
        mine = tuple(g for g in train if g.family == family)
        levels = {g.level for g in mine}
        shares = [np.mean([g.lenient for g in mine if g.level == level]) for level in levels]
        usable = any(0.1 <= share <= 0.9 for share in shares)
        if usable and metrics.auroc(score(mine), _correct(mine)) >= 0.6:
            found.add(family)
    return frozenset(found)


def _correct(answers: Answers) -> NDArray[np.bool_]:
    return np.array([g.lenient for g in answers], bool)


def _families(answers: Answers) -> NDArray[np.str_]:
    return np.array([g.family for g in answers])
