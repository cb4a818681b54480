"""`edgellm route eval`: every signal and baseline on recorded answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click


@click.command("eval")
@click.argument("folder", type=Path)
@click.option("--precision", default="exact", show_default=True, metavar="NAME", help="Recording.")
@click.option("--all", "all_", is_flag=True, help="Also families in which no signal can tell.")
@click.option("--plot", type=Path, metavar="FILE", help="Write the deferral curves as SVG.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(folder: Path, precision: str, all_: bool, plot: Path | None, json_: bool) -> None:
    """Measure routing signals on the answers recorded in FOLDER.

    FOLDER has items.jsonl and one .npz for each precision, as tests/benchmarks/router/record.py
    makes them. Signals are fitted on the calibration split and measured on the test split, whose
    templates are others. Takes some minutes: every family is left out once.

    \b
    edgellm route eval tests/routing/data
    """
    from edgellm.routing.evaluation import report
    from edgellm.routing.evaluation.compare import admitted
    from edgellm.routing.evaluation.records import read

    records = read(folder, precision)
    known = admitted(records.split("calibration").graded)
    families = frozenset(g.family for g in records.graded)
    if not json_:
        left = sorted(families - known)
        click.echo(f"no signal can tell in: {', '.join(left) or 'none'}", err=True)
    found = report.evaluate(
        records, families if all_ else known, lambda line: click.echo(line, err=True)
    )
    if plot is not None:
        from edgellm.routing.evaluation.plot import svg

        plot.write_text(svg(found.curves), encoding="utf-8")
    if json_:
        click.echo(json.dumps(_plain(report.to_json(found)), allow_nan=False))
        return
    for line in report.lines(found):
        click.echo(line)


def _plain(value: Any) -> Any:
    """The same with null for what is no number: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
