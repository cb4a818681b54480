"""From graded answers to a confidence pack."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UsageError
from edgellm.routing.confidence import fusion, isotonic, logistic
from edgellm.routing.confidence.beginnings import fit_so_far
from edgellm.routing.confidence.fusion import Material
from edgellm.routing.confidence.isotonic import Isotonic
from edgellm.routing.confidence.logistic import Logistic
from edgellm.routing.confidence.pack import About, Pack, prompt_states
from edgellm.routing.evaluation.records import Graded, Records
from edgellm.routing.signals import features

# Fewer right or wrong answers than this teach nothing that would hold.
LEAST_OF_EACH = 20
# Hidden states have hundreds of numbers: below this many answers the probe only memorises.
LEAST_FOR_PROBE = 400
# Graded answers kept aside for certificates.
KEPT_SHARE = 1 / 3
# The prompt's states say little; a very heavy penalty keeps what there is.
BEFORE_RIDGE = 1000.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Graded answers for fitting, and others, of other templates where there are any, kept aside
    for certificates."""

    fit: tuple[Graded, ...]
    kept: tuple[Graded, ...]


def choose(records: Records, seed: int = 0) -> Chosen:
    """Splits named calibration and dev are used as they are; anything else is parted at random."""
    fit = records.split("calibration").graded
    kept = records.split("dev").graded
    if fit and kept:
        return Chosen(fit, kept)
    order = np.random.default_rng(seed).permutation(len(records.graded))
    aside = set(order[: round(len(order) * KEPT_SHARE)].tolist())
    numbered = list(enumerate(records.graded))
    return Chosen(
        tuple(g for i, g in numbered if i not in aside), tuple(g for i, g in numbered if i in aside)
    )


def make_pack(records: Records, chosen: Chosen | None = None) -> Pack:
    """The pack fitted to recorded answers; UsageError when there are too few of either kind."""
    chosen = chosen or choose(records)
    train = material(chosen.fit)
    for name, count in (("right", train.correct.sum()), ("wrong", (~train.correct).sum())):
        if count < LEAST_OF_EACH:
            raise UsageError(
                f"{count} {name} answers to learn from and {LEAST_OF_EACH} are needed; "
                "grade more prompts, or a better mix of easy and hard ones"
            )
    fitted = fusion.fit(train, with_probe=len(chosen.fit) >= LEAST_FOR_PROBE)
    kept = material(chosen.kept)
    return Pack(
        about(records, chosen),
        fit_before(chosen.fit),
        fitted,
        fitted(kept.features, kept.prompts, kept.answers),
        kept.correct,
        fit_so_far(chosen.fit),
    )


def about(records: Records, chosen: Chosen) -> About:
    ids = "\n".join(sorted(g.id for g in (*chosen.fit, *chosen.kept)))
    return About(
        model=str(records.meta["model"]),
        precision=str(records.meta["precision"]),
        weights_sha256=str(records.meta["weights_sha256"]),
        graded=len(chosen.fit) + len(chosen.kept),
        graded_sha256=hashlib.sha256(ids.encode()).hexdigest(),
    )


def material(graded: tuple[Graded, ...]) -> Material:
    """What the models are fitted to: lenient grades, grouped by template."""
    prompts, answers = fusion.stack([g.observed.hidden for g in graded])
    return Material(
        np.array([features(g.observed) for g in graded]),
        prompts,
        answers,
        np.array([g.lenient for g in graded], bool),
        np.array([f"{g.family}/{g.template}" for g in graded]),
    )


def fit_before(graded: tuple[Graded, ...]) -> tuple[Logistic, Isotonic] | None:
    """A model of the prompt's hidden states alone; None where they were not recorded."""
    if any(g.observed.hidden is None for g in graded):
        return None
    states = np.concatenate([prompt_states(g.observed) for g in graded])
    correct = np.array([g.lenient for g in graded], bool)
    groups = np.array([f"{g.family}/{g.template}" for g in graded])

    def score(train: Material) -> fusion.Score:
        model = logistic.fit(train.features, train.correct, BEFORE_RIDGE)
        return lambda test: model(test.features)

    odds = fusion.out_of_fold(Material(states, None, None, correct, groups), score)
    return logistic.fit(states, correct, BEFORE_RIDGE), isotonic.fit(odds, correct)


def trust(pack: Pack, graded: tuple[Graded, ...]) -> NDArray[np.float64]:
    """P(correct) (N,) that the pack gives to recorded answers."""
    seen = material(graded)
    return pack.after_answer(seen.features, seen.prompts, seen.answers)
