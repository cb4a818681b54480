"""`edgellm route drift`: whether the prompts of today are still like the graded ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.routing.certify import opened, pack_of
from edgellm.cli.routing.log import open_ledger
from edgellm.settings import current

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellm.routing.drift import Drift


@click.command("drift")
@click.argument("model", required=False)
@click.option("--pack", type=Path, metavar="FILE", help="This pack; else the model's own.")
@click.option("--risk", type=float, default=0.1, show_default=True, metavar="R", help="Promised.")
@click.option(
    "--confidence", type=float, default=0.95, show_default=True, metavar="C", help="How sure."
)
@click.option("--offline", is_flag=True, default=None, help="Fetch nothing.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(
    model: str | None,
    pack: Path | None,
    risk: float,
    confidence: float,
    offline: bool | None,
    json_: bool,
) -> None:
    """Compare the last logged decisions about MODEL with the answers its certificate rests on.

    On alarm, `run` and `chat` with --risk keep to half of it. Exit code 3 on alarm.
    """
    from edgellm.routing.drift import look

    found = look(
        pack_of(opened(model or current().model, offline), pack), open_ledger(), risk, confidence
    )
    if json_:
        click.echo(json.dumps(asdict(found)))
    else:
        for line in lines(found):
            click.echo(line)
    if found.alarm is not None:
        raise click.exceptions.Exit(3)


def lines(found: Drift) -> Iterator[str]:
    """The state for a person."""
    from edgellm.routing.drift import LEAST

    yield f"judged      {found.looked_at} decisions"
    if found.looked_at < LEAST:
        yield f"scores      {LEAST} decisions are needed to compare them"
    else:
        yield f"scores      KS distance {found.distance:.3f}, p {found.p_scores:.3f}"
    yield (
        f"errors      {found.wrong} of {found.audited} audited local answers wrong, "
        f"p {found.p_errors:.3f}"
    )
    yield f"alarm       {found.alarm or 'none'}"
