"""`edgellm chat`: a conversation with a model in memory."""

from __future__ import annotations

import sys

import click

from edgellm.cli.options import (
    AnswerOptions,
    SamplingChoice,
    answer_options,
    load_options,
    sampling_options,
)
from edgellm.cli.routed import RouteChoice, open_routed, route_options
from edgellm.runtime.options import LoadOptions
from edgellm.settings import current

HISTORY_NAME = "chat_history"


@click.command("chat")
@click.argument("model", required=False)
@answer_options
@sampling_options
@load_options
@route_options
@click.option("--stats", is_flag=True, help="Show what each answer cost.")
def command(
    model: str | None,
    answer: AnswerOptions,
    sampling: SamplingChoice,
    load: LoadOptions,
    route: RouteChoice,
    stats: bool,
) -> None:
    """Hold a conversation with MODEL. /help inside lists its commands.

    Ctrl-C stops an answer, Ctrl-D leaves. When stdin is not a terminal each line is a turn, and
    the first error ends the conversation.

    \b
    edgellm chat smollm2-135m --system "You are a pirate."
    """
    converse(model or current().model, answer, sampling, load, route, stats)


def converse(
    reference: str,
    answer: AnswerOptions,
    sampling: SamplingChoice,
    load: LoadOptions,
    route: RouteChoice,
    stats: bool,
) -> None:
    """Loads the model and talks until the user leaves."""
    from edgellm.cli.conversation import Conversation
    from edgellm.cli.repl import Chat, recite, talk

    with open_routed(reference, load, route) as model:
        conversation = Conversation(
            sampling=sampling.over(model.default_sampling),
            max_tokens=answer.max_tokens,
            stop=answer.stop,
            system=answer.system,
        )
        chat = Chat(model, conversation, stats)
        for note in model.notes:
            chat.screen.note(note)
        if sys.stdin is None or not sys.stdin.isatty():
            from edgellm.cli.script import lines

            recite(chat, lines())
            return
        from edgellm.cli.lineinput import history, person

        chat.screen.note(f"{model.name} · /help lists the commands, Ctrl-D leaves")
        talk(chat, person(history(current().home_folder() / HISTORY_NAME)))
