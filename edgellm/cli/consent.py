"""Asking the user before private data leaves, where `--privacy ask` wants that.

What was found is shown on this machine's terminal alone. Nobody to ask means no.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edgellm.cli.routed import Abroad, Routed
from edgellm.cli.terminal import Screen
from edgellm.errors import PrivacyBlocked
from edgellm.stream import Request

if TYPE_CHECKING:
    from edgellm.routing.privacy import Guard

QUESTION = "let it leave? [y]es, [n]o, [s]how what would be sent: "
# Policies under which this request asks nobody else, whatever was found.
SENDS_NOTHING = ("local-only", "ask")


def settle(model: Routed, request: Request, screen: Screen) -> None:
    """Tells the guard what the user allows, asking where that is needed.

    A text that was kept here once is not asked for again. PrivacyBlocked where no terminal is.
    """
    abroad, options = model.abroad, model.router.options
    if abroad is None or options.offline or model.policy in SENDS_NOTHING:
        return
    sent = model.router.outgoing(request)
    verdict = abroad.guard.judge(sent, request)
    if verdict.kind != "ask":
        return
    found = {text[f.start : f.end] for text, f in abroad.guard.findings(sent)}
    if found and found <= abroad.declined:
        return
    if not _person():
        raise PrivacyBlocked(
            f"nothing was sent: {verdict.why}, and there is no terminal to ask on; say "
            "--privacy mask or pin-local, or look with edgellm route preview"
        )
    card = abroad.remote.options
    screen.note(f"{verdict.why}; it may go to {card.model} at {card.host}:")
    for line in findings(abroad.guard, sent):
        screen.note(line)
    if _answer(abroad, sent, request, screen):
        abroad.guard.allow(sent, request)
    else:
        abroad.declined.update(found)


def findings(guard: Guard, request: Request) -> Iterator[str]:
    """A line for each text that was found: its kind and itself."""
    lines = (f"  {f.kind:<12}{text[f.start : f.end]}" for text, f in guard.findings(request))
    yield from dict.fromkeys(lines)


def _answer(abroad: Abroad, sent: Request, request: Request, screen: Screen) -> bool:
    """What the user says; the end of the input and anything unclear is asked again or no."""
    while True:
        click.echo(QUESTION, nl=False, err=True)
        line = sys.stdin.readline()
        said = line.strip().lower()[:1]
        if said == "s":
            screen.note(abroad.guard.preview(abroad.remote, sent, request).decode())
        elif said in ("y", "n") or not line:
            return said == "y"


def _person() -> bool:
    """Whether somebody can read a question and answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
