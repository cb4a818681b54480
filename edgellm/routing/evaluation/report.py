"""`edgellm route eval`: every signal, the operating point, certificates, as numbers and as text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from edgellm.routing.confidence.calibrate import choose, make_pack, trust
from edgellm.routing.confidence.pack import Pack
from edgellm.routing.evaluation import certificates, compare, metrics
from edgellm.routing.evaluation.baselines import BASELINES, Answers
from edgellm.routing.evaluation.certificates import Check
from edgellm.routing.evaluation.compare import Row
from edgellm.routing.evaluation.plot import POINTS
from edgellm.routing.evaluation.records import Records

RISKS = (0.05, 0.10, 0.20, 0.30)
REMOTES = (0.80, 0.90, 0.97, 1.00)
SHARES = (0.5, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Operating:
    """A threshold fixed on one split and what it did on another. `aim` is the share of the remote's
    quality that was to be kept; `kept_quality` and `calls` are what came of it."""

    aim: float
    threshold: float
    calls: float
    accuracy: float
    kept_quality: float


@dataclass(frozen=True, slots=True)
class Remote:
    """A simulated remote of declared accuracy: calls for 95 % of its quality, and for 50, 80, 90 %
    of the gap, by our pack, a perfect router and chance."""

    accuracy: float
    ours: tuple[float, ...]
    oracle: tuple[float, ...]
    random: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    answers: int
    local_accuracy: float
    families: tuple[str, ...]
    rows: tuple[Row, ...]
    lift: tuple[str, float, float, float]
    ece: float
    brier: float
    remotes: tuple[Remote, ...]
    operating: Operating
    checks: tuple[Check, ...]
    signal_ms: float
    curves: Mapping[str, tuple[float, ...]]


def evaluate(records: Records, families: frozenset[str], say: Callable[[str], None]) -> Report:
    """Everything, on the test split of `families`; fitted on the calibration split of the same."""
    here = records.where(lambda g: g.family in families)
    chosen, test = choose(here), here.split("test").graded
    say(f"fitting on {len(chosen.fit)} answers, measuring on {len(test)}")
    pack = make_pack(here, chosen)
    started = time.perf_counter()
    p = trust(pack, test)
    signal_ms = (time.perf_counter() - started) * 1e3 / len(test)
    correct = np.array([g.lenient for g in test], bool)
    rows = []
    for row in compare.rows(chosen.fit, test, (*BASELINES, *compare.OURS)):
        say(f"{row.name}: {row.pooled:.3f}")
        rows.append(row)
    return Report(
        answers=len(test),
        local_accuracy=float(correct.mean()),
        families=tuple(sorted(families)),
        rows=tuple(rows),
        lift=_lift(chosen.fit, test, rows),
        ece=metrics.ece(p, correct),
        brier=metrics.brier(p, correct),
        remotes=tuple(_remote(p, correct, accuracy) for accuracy in REMOTES),
        operating=_operating(pack, p, correct),
        checks=tuple(certificates.check(p, correct, risk) for risk in RISKS),
        signal_ms=signal_ms,
        curves=_curves(chosen.fit, test, p, correct),
    )


def _lift(train: Answers, test: Answers, rows: list[Row]) -> tuple[str, float, float, float]:
    """Against the best baseline that is one signal, or a fit of one kind of signal."""
    theirs = [r for r in rows if not r.name.startswith("edgellm") and r.when != "oracle"]
    best = max(theirs, key=lambda r: r.pooled)
    baseline = next(b for b in BASELINES if b.name == best.name)
    return (best.name, *compare.lift(train, test, compare.whole, baseline.score))


def _remote(p: compare.Float64, correct: metrics.Bools, accuracy: float) -> Remote:
    remote = np.full(len(p), accuracy)

    def calls(trusts: compare.Float64) -> tuple[float, ...]:
        found = metrics.curve(trusts, correct, remote)
        return (found.calls_for(compare.KEEP_QUALITY), *(found.gap_calls(s) for s in SHARES))

    local = float(correct.mean())
    even = (compare.KEEP_QUALITY * accuracy - local) / (accuracy - local)
    chance = (max(even, 0.0), *SHARES) if accuracy > local else (0.0, *SHARES)
    return Remote(accuracy, calls(p), calls(metrics.oracle(correct, remote)), chance)


def _curves(
    train: Answers, test: Answers, p: compare.Float64, correct: metrics.Bools
) -> dict[str, tuple[float, ...]]:
    """Accuracies at even shares of remote calls, for the plot."""
    remote = np.full(len(p), compare.REMOTE_ACCURACY)
    mean = next(b for b in BASELINES if b.name == "mean log-probability")
    trusts = {
        "oracle": metrics.oracle(correct, remote),
        "edgellm": p,
        mean.name: mean.score(train, test),
    }
    even = np.linspace(0, 1, POINTS)
    curves = {
        name: metrics.curve(t, correct, remote).accuracy[np.round(even * len(p)).astype(int)]
        for name, t in trusts.items()
    }
    curves["random"] = correct.mean() + even * (compare.REMOTE_ACCURACY - correct.mean())
    return {name: tuple(values.tolist()) for name, values in curves.items()}


def _operating(pack: Pack, p: compare.Float64, correct: metrics.Bools) -> Operating:
    """The threshold that keeps the quality on the pack's kept answers, used on the test."""
    accuracy, kept = compare.REMOTE_ACCURACY, pack.kept_correct
    deferral = metrics.curve(pack.kept_scores, kept, np.full(len(kept), accuracy))
    calls = deferral.calls_for(compare.KEEP_QUALITY)
    threshold = float(np.quantile(pack.kept_scores, min(calls, 1.0)))
    local = p >= threshold
    reached = float(np.where(local, correct, accuracy).mean())
    return Operating(
        compare.KEEP_QUALITY, threshold, float((~local).mean()), reached, reached / accuracy
    )


def lines(report: Report) -> Iterator[str]:
    """The report for a person."""
    yield (
        f"{report.answers} answers of {len(report.families)} families, local accuracy "
        f"{report.local_accuracy:.1%} (real). The remote is simulated: right on "
        f"{compare.REMOTE_ACCURACY:.0%} of any prompts."
    )
    yield ""
    yield (
        "| signal | known | AUROC pooled [95 %] | within family | family left out | AUPR wrong | "
        "E-AURC | nAPGR | calls for 95 % |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in report.rows:
        low, high = r.interval
        values = (r.within, r.left_out, r.aupr, r.excess_aurc, r.apgr)
        yield (
            f"| {r.name} | {r.when} | {r.pooled:.3f} [{low:.3f}, {high:.3f}] | "
            f"{' | '.join(f'{value:.3f}' for value in values)} | {r.calls:.1%} |"
        )
    yield ""
    name, gain, low, high = report.lift
    yield f"lift of the pack over {name}: {gain:+.3f} [{low:+.3f}, {high:+.3f}], paired"
    yield f"P(correct): ECE {report.ece:.3f}, Brier {report.brier:.3f}; {report.signal_ms:.2f} ms"
    yield ""
    yield (
        "| remote (simulated) | calls for 95 % of its quality: ours / oracle / random | "
        "for 50, 80, 90 % of the gap |"
    )
    yield "|---|---|---|"
    for remote in report.remotes:
        first = " / ".join(f"{c[0]:.1%}" for c in (remote.ours, remote.oracle, remote.random))
        rest = ", ".join(f"{c:.1%}" for c in remote.ours[1:])
        yield f"| {remote.accuracy:.0%} | {first} | {rest} |"
    yield from _promises(report)


def _promises(report: Report) -> Iterator[str]:
    """What was fixed or certified beforehand, and what became of it."""
    o = report.operating
    yield ""
    yield (
        f"threshold fixed beforehand for {o.aim:.0%} of the remote's quality: {o.threshold:.3f}, "
        f"then {o.calls:.1%} calls, {o.kept_quality:.1%} of the quality"
    )
    yield from _certificates(report)


def _certificates(report: Report) -> Iterator[str]:
    for c in report.checks:
        yield (
            f"certificates at risk {c.risk:.0%}: {c.violations} of {c.draws} violated "
            f"({c.violation_rate:.1%}, allowed {1 - c.confidence:.0%}), {c.certified} certified, "
            f"kept {c.kept_share:.1%} (hindsight {c.best_share:.1%}), {c.graded} graded each"
        )


def to_json(report: Report) -> dict[str, object]:
    return asdict(report)
