"""Ranking, calibration and certificates: the rows that `edgellm route eval` measures.

Real: local answers, grades, signals. Simulated: the remote, right on a declared share of prompts.
Everything is fitted on the calibration templates and measured on the test templates.
"""

from __future__ import annotations

from collections.abc import Iterator

from target_rows import Job, Row, least, most

from edgellm.routing.evaluation import compare
from edgellm.routing.evaluation.records import Records, read
from edgellm.routing.evaluation.report import Report, evaluate

PACK, BEFORE = "edgellm, pack (with gated probe)", "edgellm, before"
SIMULATED = f"remote right on {compare.REMOTE_ACCURACY:.0%}"
REAL = "answers, grades, signals"
# Two standard errors of a share of 5 % over 500 draws.
MONTE_CARLO = 0.02


def rows(job: Job) -> Iterator[Row]:
    """Part `ranking` of the target table."""
    records = read(job.record, job.precision)
    every = frozenset(g.family for g in records.split("test").graded)
    admitted = compare.admitted(records.split("calibration").graded)
    yield from _rows(records, admitted, f"{len(admitted)} admitted families", True)
    yield from _rows(records, every, f"all {len(every)} families", False)
    left = ", ".join(sorted(every - admitted)) or "none"
    yield Row("ranking", "families not admitted", left, None, None, None, REAL, "")


def _rows(records: Records, families: frozenset[str], name: str, admitted: bool) -> Iterator[Row]:
    """AUROC on these families against their targets; for the admitted ones everything else too."""
    report = evaluate(records, families, lambda line: None)
    found = {row.name: row for row in report.rows}
    pack = found[PACK]
    limits = (((0.85, 0.90), (0.84, 0.88), (0.80, 0.84)) if admitted else
              ((0.82, 0.86), (0.79, 0.83), (0.76, 0.79)))  # fmt: skip
    values = (("pooled", pack.pooled), ("within family", pack.within), ("left out", pack.left_out))
    low, high = pack.interval
    for (what, value), (passes, ambitious) in zip(values, limits, strict=True):
        text = f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if what == "pooled" else "")
        yield Row("ranking", f"AUROC after, {what}, {name}", text, value, least(passes),
                  least(ambitious), REAL, "")  # fmt: skip
    if admitted:
        yield from report_rows(report, found.get(BEFORE), pack)


def report_rows(report: Report, before: compare.Row | None, pack: compare.Row) -> Iterator[Row]:
    """Everything but the AUROC after an answer."""
    if before is not None:
        yield Row("ranking", "AUROC before, pooled", f"{before.pooled:.3f}", before.pooled,
                  least(0.72), least(0.78), REAL, "")  # fmt: skip
        yield Row("ranking", "AUROC before, left out", f"{before.left_out:.3f}", before.left_out,
                  least(0.56), least(0.62), REAL, "")  # fmt: skip
    name, gain, low, high = report.lift
    yield Row("ranking", f"lift over {name}", f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]", low,
              least(1e-9, "> 0, interval excludes 0"), None, REAL, "")  # fmt: skip
    yield Row("ranking", "nAPGR", f"{pack.apgr:.3f}", pack.apgr, least(0.75), least(0.84), REAL,
              SIMULATED)  # fmt: skip
    remote = next(r for r in report.remotes if r.accuracy == compare.REMOTE_ACCURACY)
    text = f"{remote.ours[0]:.1%} (oracle {remote.oracle[0]:.1%}, random {remote.random[0]:.1%})"
    yield Row("ranking", "remote calls for 95 % of the remote's quality", text, remote.ours[0],
              most(0.62, "≤ 62 %"), most(0.55, "≤ 55 %"), REAL, SIMULATED)  # fmt: skip
    for share, at in (("50", 1), ("80", 2)):
        text = f"{remote.ours[at]:.1%} (oracle {remote.oracle[at]:.1%}, random {share} %)"
        yield Row("ranking", f"CPT({share})", text, None, None, None, REAL, SIMULATED)
    o = report.operating
    text = f"{o.kept_quality:.1%} of the quality for {o.calls:.1%} calls"
    yield Row("ranking", "threshold fixed beforehand for 95 %", text, None, None, None, REAL,
              SIMULATED)  # fmt: skip
    yield Row("ranking", "ECE of P(correct)", f"{report.ece:.3f}", report.ece, most(0.05),
              most(0.03), REAL, "")  # fmt: skip
    for c in report.checks:
        kept = c.kept_share / c.best_share if c.best_share else 0.0
        text = (
            f"{c.violation_rate:.1%} of {c.draws} violated, {c.certified} certified, "
            f"{c.kept_share:.1%} kept ({kept:.0%} of what hindsight keeps)"
        )
        bounds = (None, None)
        if c.risk == 0.10:
            bounds = (most(0.05 + MONTE_CARLO, "≤ 5 % + MC"), most(0.05 if kept >= 0.8 else -1.0,
                      "≤ 5 %, ≥ 80 % kept"))  # fmt: skip
        yield Row("ranking", f"certificates at risk {c.risk:.0%}", text, c.violation_rate, *bounds,
                  REAL, "")  # fmt: skip
