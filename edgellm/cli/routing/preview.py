"""`edgellm route preview`: the exact bytes that a remote would get. Sends nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edgellm.cli import backend
from edgellm.cli.consent import findings
from edgellm.cli.limits import privacy_options, remote_options
from edgellm.cli.options import (
    AnswerOptions,
    SamplingChoice,
    answer_options,
    refuse,
    sampling_options,
    utf8,
)
from edgellm.settings import current
from edgellm.stream import Request, Sampling

if TYPE_CHECKING:
    from edgellm.routing.asked import Asked
    from edgellm.routing.privacy import Guard, PrivacyOptions
    from edgellm.routing.remote import RemoteOptions
    from edgellm.routing.seams import Verdict


@click.command("preview")
@click.argument("text", required=False)
@remote_options
@privacy_options
@click.option("--passages", type=int, metavar="N", help="Of long texts send N tokens.")
@click.option("-m", "--model", metavar="MODEL", help="Whose sampling goes along, as with run.")
@answer_options
@sampling_options
def command(
    text: str | None,
    remote: RemoteOptions | None,
    privacy: PrivacyOptions,
    passages: int | None,
    model: str | None,
    answer: AnswerOptions,
    sampling: SamplingChoice,
) -> None:
    """Show what a remote would get of TEXT, or of stdin; nothing is sent.

    The body goes to stdout as it would go out, byte by byte. Verdict and findings go to stderr.
    Nothing on stdout means that nothing would leave.

    \b
    edgellm route preview "Mail ada@example.org" --remote https://api.example.com/v1 \\
        --remote-model large --privacy mask
    """
    refuse(remote is None, "a preview needs a remote: --remote URL --remote-model NAME")
    said = utf8(text, "the text") if text is not None else _stdin()
    refuse(not said.strip(), "the text is empty; give TEXT or pipe it in")
    recommended = backend.recommended_sampling(model or current().model)
    request = Request(
        messages=Request.user(said, answer.system).messages,
        max_tokens=answer.max_tokens,
        sampling=sampling.over(recommended or Sampling()),
        stop=answer.stop,
    )
    from edgellm.routing.asked import Asked
    from edgellm.routing.privacy import Guard
    from edgellm.routing.remote import RemoteBackend

    if remote is None:
        return
    asked, guard = Asked.of(request, "", passages), Guard(privacy)
    verdict = guard.judge(asked.sent, request)
    for line in _notes(verdict, guard, asked):
        click.echo(line, err=True)
    if recommended is None:
        click.echo("the model is not in the store: its own sampling is not shown", err=True)
    if verdict.may_leave or verdict.kind == "ask":
        click.echo(guard.preview(RemoteBackend(remote), asked.sent, request))


def _notes(verdict: Verdict, guard: Guard, asked: Asked) -> Iterator[str]:
    yield f"{verdict.kind}{': ' if verdict.why else ''}{verdict.why}"
    yield from findings(guard, asked.sent)
    if asked.note is not None:
        yield asked.note


def _stdin() -> str:
    return "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
