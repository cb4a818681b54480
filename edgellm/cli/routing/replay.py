"""`edgellm route replay`: what another threshold would have done."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgellm.cli.options import refuse
from edgellm.cli.routing.log import open_ledger

if TYPE_CHECKING:
    from edgellm.routing.replay import Replay

DEFAULT_THRESHOLDS = (0.3, 0.5, 0.7, 0.9)


@click.command("replay")
@click.option("--threshold", type=float, multiple=True, metavar="P", help="Repeatable.")
@click.option("-n", "--last", type=int, default=1000, show_default=True, metavar="N", help="Of.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(threshold: tuple[float, ...], last: int, json_: bool) -> None:
    """Estimate what other thresholds would have sent away, cost and got right.

    Quality is known only where there was a verdict: your feedback (`route explain --good|--bad`) or
    a shadow call. Each line says how many decisions its estimate rests on.
    """
    refuse(last < 1, f"-n must be 1 or more, got {last}")
    for value in threshold:
        refuse(not 0 <= value <= 1, f"--threshold must be between 0 and 1, got {value}")
    from edgellm.routing.replay import replay

    decisions = open_ledger().latest(last)
    found = [replay(decisions, value) for value in threshold or DEFAULT_THRESHOLDS]
    if json_:
        click.echo(json.dumps([asdict(one) for one in found]))
        return
    for one in found:
        click.echo(line(one))


def line(found: Replay) -> str:
    good = "unknown: no verdicts"
    if found.good is not None:
        good = f"{found.good:.1%} from {found.counted} verdicts (worth {found.effective:.0f})"
    return (
        f"threshold {found.threshold:.2f}: {found.escalated:.1%} of {found.decisions} sent "
        f"(was {found.before_escalated:.1%}), ${found.cost_usd:.4f} (was "
        f"${found.before_cost_usd:.4f}), good answers: {good}"
    )
