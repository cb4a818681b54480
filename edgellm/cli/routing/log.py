"""`edgellm route log`: past decisions, the last first."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click

from edgellm.cli.options import refuse
from edgellm.cli.routed import database_path

if TYPE_CHECKING:
    from edgellm.routing.ledger import Decision, Ledger


@click.command("log")
@click.option("-n", "--last", type=int, default=20, show_default=True, metavar="N", help="So many.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(last: int, json_: bool) -> None:
    """List past decisions: when, who answered, P(correct), price, reason.

    Texts are not in the log, only hashes with a key of this machine.
    """
    refuse(last < 1, f"-n must be 1 or more, got {last}")
    found = open_ledger().latest(last)
    if json_:
        click.echo(json.dumps([asdict(decision) for decision in found]))
        return
    for decision in found:
        click.echo(line(decision))
    if not found:
        click.echo("no decisions yet; run or chat with --route", err=True)


def open_ledger() -> Ledger:
    """The log in the store's home."""
    from edgellm.routing.database import Database
    from edgellm.routing.ledger import Ledger

    return Ledger(Database(database_path()), "cli")


def line(decision: Decision) -> str:
    when = datetime.fromtimestamp(decision.at).strftime("%Y-%m-%d %H:%M:%S")
    p = "     " if decision.p_after is None else f"p {decision.p_after:.2f}"[:6]
    who = decision.source or "nobody"
    return (
        f"{decision.request_id[:8]}  {when}  {who:<6}  {p:<6}  ${decision.cost_usd:.4f}  "
        f"{decision.reason}"
    )
