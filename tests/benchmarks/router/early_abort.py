"""Local answers that are given up before their end, replayed on recordings.

Real: the answers, their grades, log-probabilities and hidden states. Simulated: the remote's
quality. The watch is the router's own; it sees the recorded tokens one by one. Recorded tokens have
no text, so the text so far is the answer's, cut at the token's share of it.

The last row asks what the pack's second model is worth, the one that is fitted to beginnings of
answers: without it beginnings are judged as if they were whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from target_rows import Job, Row, least

from edgellm.routing.confidence.beginnings import beginning
from edgellm.routing.confidence.calibrate import Chosen, choose, make_pack
from edgellm.routing.confidence.pack import Pack
from edgellm.routing.evaluation import metrics
from edgellm.routing.evaluation.compare import KEEP_QUALITY, REMOTE_ACCURACY
from edgellm.routing.evaluation.records import Graded, Records, read
from edgellm.routing.gain import Bar
from edgellm.routing.options import RouterOptions
from edgellm.routing.signals import Observed, features
from edgellm.routing.watch import Watch
from edgellm.stream import Delta, Done, Request, Start, Timings, Usage

TIMINGS = Timings(0.0, 0.0, 0.0, 0.0)
# What is tried on answers that are not in the test; the best that costs little goes on to it.
LOOKS, ROW, MARGINS = (1, 2, 3, 4, 6, 8), (1, 2, 3), (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
ALLOWED_LOSS = 0.01
# What was chosen on some answers does worse on others, so a little less is aimed at.
AIMED_LOSS = 0.005
FOLDS = 4


@dataclass(frozen=True, slots=True)
class Known:
    """One recorded answer and what the pack says after each token of it, and at its end."""

    graded: Graded
    so_far: tuple[float, ...]
    final: float


class Recall:
    """A Confidence that remembers what the pack said of one answer."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def before(self, observed: Observed) -> float | None:
        return None

    def after(self, observed: Observed) -> float:
        if observed.finish_reason is not None:
            return self._known.final
        return self._known.so_far[len(observed.tokens) - 1]


@dataclass(frozen=True, slots=True)
class Replayed:
    """`saved` is the share of the local tokens of escalated answers that were never made, `lost`
    the share of all answers given up although they would have stayed and were right."""

    escalated: int
    saved: float
    given_up: int
    lost: float
    net: float


def judged(pack: Pack, answers: Sequence[Graded]) -> list[Known]:
    """What the pack says at every token: once, for all settings."""
    known = []
    for g in answers:
        seen = g.observed
        parts = [beginning(seen, n) for n in range(1, len(seen.tokens) + 1)]
        if pack.so_far is None or not parts:
            said = [pack.after(part) for part in parts]
        else:
            said = list(pack.so_far(np.array([features(part) for part in parts]), None, None))
        known.append(Known(g, tuple(said), pack.after(seen)))
    return known


def stopped_at(known: Known, threshold: float, options: RouterOptions) -> int | None:
    """After which token the router's watch gives the answer up; None: never before its end."""
    request = Request.user(known.graded.observed.prompt)
    watch = Watch(Recall(known), request, Bar(threshold), abort=True)
    watch.see(Start("local", known.graded.observed.prompt_tokens), options)
    for number, token in enumerate(known.graded.observed.tokens, 1):
        if watch.see(Delta("", (token,)), options):
            return number
    watch.see(Done("stop", Usage(0, 0), TIMINGS), options)
    return None


def replay(answers: Sequence[Known], threshold: float, options: RouterOptions) -> Replayed:
    made = spared = escalated = given_up = lost = gain = 0
    for known in answers:
        count, at = len(known.graded.observed.tokens), stopped_at(known, threshold, options)
        wanted = known.final < threshold
        if wanted:
            escalated += 1
            made += count
            spared += 0 if at is None else count - at
        elif at is not None:
            given_up += 1
            lost += known.graded.lenient
            gain += REMOTE_ACCURACY - known.graded.lenient
    total = max(len(answers), 1)
    return Replayed(escalated, spared / max(made, 1), given_up, lost / total, gain / total)


def operating_threshold(scores: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """The threshold that keeps the wanted share of the remote's quality on these answers."""
    deferral = metrics.curve(scores, correct, np.full(len(correct), REMOTE_ACCURACY))
    return float(np.quantile(scores, min(deferral.calls_for(KEEP_QUALITY), 1.0)))


def tuned(answers: Sequence[Known], threshold: float) -> RouterOptions:
    """The settings that save most on these answers at the loss aimed at."""
    best, most_saved = RouterOptions("cascade"), -1.0
    for look, row, margin in product(LOOKS, ROW, MARGINS):
        options = RouterOptions("cascade", check_tokens=look, abort_checks=row, abort_margin=margin)
        seen = replay(answers, threshold, options)
        if seen.lost <= AIMED_LOSS and seen.saved > most_saved:
            best, most_saved = options, seen.saved
    return best


def practice(records: Records, chosen: Chosen) -> list[Known]:
    """What settings are tuned on: the dev templates, and the calibration templates judged by models
    that did not see them. The test templates are not looked at."""
    names = np.array([f"{g.family}/{g.template}" for g in chosen.fit])
    unique, place = np.unique(names, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(unique))[place] % FOLDS
    known = judged(make_pack(records, chosen), chosen.kept)
    for i in range(FOLDS):
        held = tuple(g for g, f in zip(chosen.fit, fold, strict=True) if f == i)
        rest = tuple(g for g, f in zip(chosen.fit, fold, strict=True) if f != i)
        known += judged(make_pack(records, Chosen(rest, chosen.kept)), held)
    return known


def rows(job: Job) -> Iterator[Row]:
    """Part `abort` of the target table."""
    records = read(job.record, job.precision)
    chosen = choose(records)
    pack = make_pack(records, chosen)
    threshold = operating_threshold(pack.kept_scores, pack.kept_correct)
    answers = records.split("test").graded
    test = judged(pack, answers)
    yield _row("as shipped", test, threshold, RouterOptions("cascade"))
    yield _row("tuned", test, threshold, tuned(practice(records, chosen), threshold))
    whole = judged(replace(pack, so_far=None), answers)
    yield _row("beginnings judged as whole answers", whole, threshold, RouterOptions("cascade"))


def _row(name: str, test: Sequence[Known], threshold: float, options: RouterOptions) -> Row:
    seen = replay(test, threshold, options)
    longer = replay([k for k in test if len(k.so_far) > 8], threshold, options)
    text = (
        f"{seen.saved:.1%} of the tokens of {seen.escalated} escalated answers "
        f"({longer.saved:.1%} where they have more than 8), {seen.lost:.2%} points lost "
        f"({seen.given_up} of {len(test)} given up that would have stayed; {seen.net:+.2%} with "
        f"the remote's answers); a look every {options.check_tokens}, {options.abort_checks} in a "
        f"row, margin {options.abort_margin:g}, threshold {threshold:.2f}"
    )
    # A saving that costs more than is allowed is none.
    value = seen.saved if seen.lost <= ALLOWED_LOSS else 0.0
    real, said = "answers, grades, signals", f"remote right on {REMOTE_ACCURACY:.0%}"
    return Row("abort", f"local tokens spared: {name}", text, value, least(0.3, "≥ 30 % at ≤ 1 pt"),
               least(0.5, "≥ 50 % at ≤ 1 pt"), real, said)  # fmt: skip
