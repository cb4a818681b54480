"""The commands of a chat: a table of names, and one function for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from edgellm.cli.conversation import (
    READ_LIMIT_BYTES,
    WHOLE_NUMBERS,
    Conversation,
    load,
    read_text,
    save,
)
from edgellm.cli.repl import Chat
from edgellm.cli.routed import badge
from edgellm.cli.terminal import statistics
from edgellm.errors import UsageError
from edgellm.routing.options import POLICIES, Policy
from edgellm.stream import Message, Sampling

PARAMETERS = (*(field.name for field in fields(Sampling)), "max_tokens", "stop")
KEYS = '''
Three quotes (""") begin and end a text of several lines; Alt-Enter or Esc Enter is a new line.
Tab completes commands and file names. Ctrl-C stops an answer: what was said stays in the
conversation, and if nothing was said yet the question is taken back. Ctrl-D leaves.
A question that starts with / needs a space before it.'''


@dataclass(frozen=True, slots=True)
class Command:
    """`obey` gets the chat and the rest of the line."""

    obey: Callable[[Chat, str], None]
    usage: str
    help: str


def obey(chat: Chat, line: str) -> None:
    """Does what a line that starts with a slash says; UsageError suggests what was meant."""
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        raise UsageError(f"unknown command {name}{_similar(name, COMMANDS)}; /help lists them")
    command.obey(chat, argument.strip())


def _similar(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]}?" if found else ""


def _help(chat: Chat, argument: str) -> None:
    lines = [f"{command.usage:<24}{command.help}" for command in COMMANDS.values()]
    chat.screen.note("\n".join(lines) + KEYS)


def _exit(chat: Chat, argument: str) -> None:
    raise EOFError


def _clear(chat: Chat, argument: str) -> None:
    chat.conversation = replace(chat.conversation, messages=(), attached="")
    chat.screen.note("the conversation is forgotten; system message and parameters stay")


def _regen(chat: Chat, argument: str) -> None:
    if chat.conversation.sampling.temperature == 0:
        chat.screen.note("temperature is 0, so the answer will be the same; /set temperature 0.7")
    elif chat.conversation.sampling.seed is not None:
        chat.screen.note("the seed is fixed, so the answer will be the same; /set seed default")
    chat.again()


def _system(chat: Chat, argument: str) -> None:
    if argument:
        text = None if argument in ('""', "''") else argument
        chat.conversation = replace(chat.conversation, system=text)
    chat.screen.note(f"system message: {chat.conversation.system or 'none'}")


def _set(chat: Chat, argument: str) -> None:
    if not argument:
        chat.screen.note("\n".join(_parameters(chat)))
        return
    name, _, text = argument.partition(" ")
    name, text = name.replace("-", "_"), text.strip()
    if name not in PARAMETERS:
        hint = _similar(name, PARAMETERS)
        raise UsageError(f"unknown parameter {name}{hint}; /set alone lists them")
    if not text:
        raise UsageError(f"/set {name} needs a value; `default` goes back to the first one")
    chat.conversation = _with_parameter(chat, name, text)
    chat.screen.note(next(line for line in _parameters(chat) if line.split()[0] == name))


def _with_parameter(chat: Chat, name: str, text: str) -> Conversation:
    now, first = chat.conversation, chat.defaults
    if name in ("max_tokens", "stop"):
        if text == "default":
            value: Any = getattr(first, name)
        else:
            value = (text,) if name == "stop" else _number(name, text)
        changed = replace(now, **{name: value})
    else:
        value = getattr(first.sampling, name) if text == "default" else _number(name, text)
        changed = replace(now, sampling=replace(now.sampling, **{name: value}))
    # The request checks what the conversation itself does not.
    changed.request([Message("user", "check")])
    return changed


def _number(name: str, text: str) -> float:
    whole = name in (*WHOLE_NUMBERS, "max_tokens")
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {kind}, got {text!r}") from error


def _parameters(chat: Chat) -> list[str]:
    now = chat.conversation
    values = asdict(now.sampling) | {"max_tokens": now.max_tokens, "stop": list(now.stop) or None}
    shown = {name: "none" if value is None else value for name, value in values.items()}
    return [f"{name:<20}{value}" for name, value in shown.items()]


def _show(chat: Chat, argument: str) -> None:
    now = chat.conversation
    lines = [f"{'model':<20}{chat.model.name}", f"{'system':<20}{now.system or 'none'}"]
    lines.append(f"{'answers':<20}{len(now.messages) // 2}")
    if chat.last is not None:
        used = chat.last.usage
        depth = used.prompt_tokens + used.completion_tokens
        lines.append(f"{'last answer used':<20}{depth} tokens of context")
    if now.attached:
        lines.append(f"{'read, not yet sent':<20}{len(now.attached)} characters")
    chat.screen.note("\n".join([*lines, *_parameters(chat)]))


def _save(chat: Chat, argument: str) -> None:
    path = _path(argument, "/save")
    save(path, chat.conversation, chat.model.name)
    chat.screen.note(f"saved {_answers(chat)} to {path}")


def _load(chat: Chat, argument: str) -> None:
    path = _path(argument, "/load")
    chat.conversation, model = load(path)
    chat.screen.note(f"loaded {_answers(chat)} from {path}")
    if model != chat.model.name:
        chat.screen.note(f"made with {model}; {chat.model.name} goes on")


def _read(chat: Chat, argument: str) -> None:
    path = _path(argument, "/read")
    text = read_text(path, READ_LIMIT_BYTES)
    attached = f"{chat.conversation.attached}File {path.name}:\n{text.rstrip()}\n\n"
    chat.conversation = replace(chat.conversation, attached=attached)
    chat.screen.note(f"read {len(text)} characters; they go with your next question")


def _route(chat: Chat, argument: str) -> None:
    if argument:
        if argument not in POLICIES:
            raise UsageError(
                f"unknown policy {argument}{_similar(argument, POLICIES)}; "
                f"known are {', '.join(POLICIES)}"
            )
        chat.model = chat.model.under(cast(Policy, argument))
    remotes = ", ".join(chat.model.remotes) or "none; start with --remote URL --remote-model NAME"
    chat.screen.note(f"{'policy':<20}{chat.model.policy}\n{'remote':<20}{remotes}")
    if chat.last is not None and not argument:
        chat.screen.note(f"{'last answer':<20}{badge(chat.last.route)}")


def _ask(chat: Chat, argument: str) -> None:
    chat.again("remote-only")


def _answers(chat: Chat) -> str:
    count = len(chat.conversation.messages) // 2
    return "1 answer" if count == 1 else f"{count} answers"


def _path(argument: str, command: str) -> Path:
    bare = argument[1:-1] if argument[:1] in ("'", '"') and argument[-1:] == argument[:1] else ""
    if not argument:
        raise UsageError(f"{command} needs a file name")
    return Path(bare or argument).expanduser()


def _stats(chat: Chat, argument: str) -> None:
    chat.stats = not chat.stats
    if chat.stats and chat.last is not None:
        chat.screen.note(statistics(chat.last))
    chat.screen.note(f"statistics after each answer: {'on' if chat.stats else 'off'}")


COMMANDS = {
    "/help": Command(_help, "/help", "this text"),
    "/exit": Command(_exit, "/exit", "leave"),
    "/clear": Command(_clear, "/clear", "forget the conversation"),
    "/regen": Command(_regen, "/regen", "answer the last question again"),
    "/system": Command(_system, "/system [TEXT]", 'show or set the system message; "" for none'),
    "/set": Command(_set, "/set [NAME VALUE]", "show or set a parameter; VALUE may be default"),
    "/show": Command(_show, "/show", "what is set and how long the conversation is"),
    "/save": Command(_save, "/save FILE", "write the conversation to a file"),
    "/load": Command(_load, "/load FILE", "go on with a saved conversation"),
    "/read": Command(_read, "/read FILE", "put a text file before the next question"),
    "/route": Command(_route, "/route [POLICY]", "show or set who answers, here or elsewhere"),
    "/ask": Command(_ask, "/ask", "let the remote answer the last question instead"),
    "/stats": Command(_stats, "/stats", "show what answers cost, or stop showing it"),
}
# What people type who come from other programs.
ALIASES = {"/quit": "/exit", "/bye": "/exit", "/?": "/help"}
