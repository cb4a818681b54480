"""`edgellm route budget`: what remote answers have cost, and what is left of the caps."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.limits import budget_options
from edgellm.cli.routed import database_path

if TYPE_CHECKING:
    from edgellm.routing.budget import BudgetOptions, Cap


@click.command("budget")
@budget_options
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(budget: BudgetOptions, json_: bool) -> None:
    """Show what was spent and reserved today and this month.

    Caps are those given here or in edgellm.toml, as `run` and `chat` take them.
    """
    from edgellm.routing.budget import Budget
    from edgellm.routing.database import Database

    # Every call is a session of its own, and this one spends nothing.
    standing = Budget(Database(database_path()), budget, "").standing()
    shown = [cap for cap in standing if "session" not in cap.name]
    if json_:
        click.echo(json.dumps([_document(cap) for cap in shown]))
        return
    for cap in shown:
        click.echo(cap.state())


def _document(cap: Cap) -> dict[str, Any]:
    """JSON has no infinity: a cap that is not set is null."""
    return asdict(cap) | {"limit": cap.limit if cap.limit < math.inf else None}
