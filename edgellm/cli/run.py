"""`edgellm run`: one prompt, one answer, streamed as it is made."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click

from edgellm.cli.answer import Playback, answering, begin, cut_short
from edgellm.cli.consent import settle
from edgellm.cli.options import (
    AnswerOptions,
    SamplingChoice,
    answer_options,
    gathered,
    load_options,
    refuse,
    sampling_options,
    utf8,
)
from edgellm.cli.routed import RouteChoice, Routed, open_routed, route_options
from edgellm.cli.terminal import Screen, logprob_table, statistics
from edgellm.errors import UsageError
from edgellm.runtime.options import LoadOptions
from edgellm.settings import current
from edgellm.stream import Request, complete

# Four bytes a token: four million tokens, more than any context this could be meant for.
STDIN_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """What is printed besides the plain answer."""

    raw: bool = False
    logprobs: int | None = None
    stats: bool = False
    json_: bool = False

    def __post_init__(self) -> None:
        Request(prompt="check", logprobs=self.logprobs)


output_options = gathered(
    "output",
    Output,
    click.option("--raw", is_flag=True, help="Send the prompt as it is, without chat template."),
    click.option("--logprobs", type=int, metavar="N", help="Show N rivals of each token; 0: none."),
    click.option("--stats", is_flag=True, help="Show what the answer cost."),
    click.option("--json", "json_", is_flag=True, help="Print one JSON document."),
)


@click.command("run")
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@answer_options
@sampling_options
@load_options
@route_options
@output_options
def command(
    model: str | None,
    prompt: str | None,
    answer: AnswerOptions,
    sampling: SamplingChoice,
    load: LoadOptions,
    route: RouteChoice,
    output: Output,
) -> None:
    """Answer PROMPT with MODEL, streaming the text to stdout.

    A single argument is the MODEL. Text piped to stdin is the prompt, or follows PROMPT after a
    blank line. Without either, on a terminal, this is `edgellm chat`. Sampling options that are
    not given keep what the model's makers recommend. A PROMPT that starts with a dash goes after
    `--`. SIGTERM ends it like Ctrl-C, with exit code 143 instead of 130. Nothing leaves this
    machine unless --route says so.

    \b
    edgellm run smollm2-135m "Why is the sky blue?"
    git diff | edgellm run smollm2-135m "Write a commit message" -t 0
    """
    text = _prompt(model, prompt, output.raw)
    reference = model or current().model
    if text is None:
        refuse(output.json_, "--json needs a PROMPT")
        refuse(output.raw, "--raw needs a PROMPT")
        refuse(output.logprobs is not None, "--logprobs needs a PROMPT")
        from edgellm.cli.chat import converse

        converse(reference, answer, sampling, load, route, output.stats)
        return
    refuse(output.raw and bool(answer.system), "--system needs the chat template; leave out --raw")
    with open_routed(reference, load, route) as opened:
        request = Request(
            messages=() if output.raw else Request.user(text, answer.system).messages,
            prompt=text if output.raw else None,
            max_tokens=answer.max_tokens,
            sampling=sampling.over(opened.default_sampling),
            stop=answer.stop,
            logprobs=output.logprobs,
        )
        _answer(opened, request, output)


def _answer(opened: Routed, request: Request, output: Output) -> None:
    screen = Screen()
    for note in opened.notes:
        screen.note(note)
    settle(opened, request, screen)
    with answering(opened, request) as events:
        start = begin(events, screen)
        if output.json_:
            from edgellm.cli.document import document

            completion = complete(chain([start], events))
            screen.answer(document(completion, with_logprobs=request.logprobs is not None))
            return
        playback = Playback(screen)
        done = playback.play(events)
    if request.logprobs is not None:
        screen.note(logprob_table(playback.tokens))
    if done.finish_reason == "length":
        screen.note(cut_short(done, request.max_tokens))
    for remark in opened.remarks(done):
        screen.note(remark)
    if output.stats:
        screen.note(statistics(done))


def _prompt(model: str | None, prompt: str | None, raw: bool) -> str | None:
    """The prompt of arguments and stdin; None when there is a person to ask for one."""
    if prompt is None and model is not None and any(c.isspace() for c in model):
        refuse(
            not Path(model).exists(),
            f"{model!r} is not a model; write: edgellm run {current().model} {model!r}",
        )
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal and prompt is None:
        return None
    piped = "" if terminal else _stdin()
    if not raw:
        piped = piped.rstrip("\r\n")
    said = utf8(prompt, "the prompt") if prompt is not None else ""
    text = f"{said}\n\n{piped}" if said and piped else said or piped
    refuse(not (text if raw else text.strip()), "the prompt is empty; give PROMPT or pipe text in")
    return text


def _stdin() -> str:
    if sys.stdin is None:
        return ""
    data = sys.stdin.buffer.read(STDIN_LIMIT_BYTES + 1)
    refuse(
        len(data) > STDIN_LIMIT_BYTES,
        f"stdin has more than {STDIN_LIMIT_BYTES} bytes, which no context holds; send less",
    )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"stdin is not valid UTF-8 at byte {error.start}; convert it, as iconv does"
        raise UsageError(message) from error
