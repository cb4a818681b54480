"""`edgellm route`: the router's own commands, one file each in edgellm/cli/routing."""

from __future__ import annotations

import click

from edgellm.cli import LazyGroup

COMMANDS = {
    "calibrate": "Learn from graded prompts when this model is right.",
    "certify": "Find the threshold that keeps a risk.",
    "eval": "Measure signals on recorded answers.",
    "preview": "Show what a remote would get; send nothing.",
    "budget": "Show what remote answers have cost.",
    "drift": "Tell whether prompts are still like the graded ones.",
    "log": "List past decisions.",
    "explain": "Tell why an answer came from where it came.",
    "replay": "Estimate another policy on past decisions.",
}


class RouteGroup(LazyGroup):
    package = "edgellm.cli.routing"
    table = COMMANDS


@click.group("route", cls=RouteGroup)
def command() -> None:
    """Decide when to ask a larger model, and know how far the local one can be trusted.

    \b
    edgellm route certify smollm2-135m --risk 0.10
    edgellm route calibrate smollm2-135m mine.jsonl --risk 0.10
    """
