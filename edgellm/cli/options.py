"""Options that commands share. Each group arrives in the command as one checked value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from edgellm.errors import UsageError
from edgellm.runtime.options import LoadOptions
from edgellm.settings import current
from edgellm.stream import Request, Sampling

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """What the user said about sampling; None leaves the bundle's recommendation."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        # A wrong value is refused before a model is loaded for it.
        self.over(Sampling())

    def over(self, recommended: Sampling) -> Sampling:
        """`recommended` with what the user said in its place."""
        said = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(recommended, **said)


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What kind of answer is wanted."""

    system: str | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.system or "", *self.stop):
            utf8(text, "an option")
        Request(prompt="check", max_tokens=self.max_tokens, stop=self.stop)


class Context(click.ParamType[int]):
    """A number of tokens, or `auto`, which arrives as 0."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "auto":
            return 0
        try:
            tokens = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of tokens nor auto", param, ctx)
        if tokens < 1:
            self.fail(f"the context must be 1 token or more, got {tokens}", param, ctx)
        return tokens


def gathered(parameter: str, make: Callable[..., Any], *options: Command) -> Command:
    """A decorator: adds click options and hands the command one value, `make` of them all."""
    names = list(inspect.signature(make).parameters)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*args: Any, **values: Any) -> Any:
            values[parameter] = make(**{name: values.pop(name) for name in names})
            return command(*args, **values)

        return functools.reduce(lambda made, option: option(made), reversed(options), wrapped)

    return decorate


def together(*groups: Command) -> Command:
    """One decorator that applies several; the first group stands first in the help."""
    return lambda command: functools.reduce(lambda made, group: group(made), groups[::-1], command)


def make_load_options(
    ctx: int | None,
    ep: str | None,
    require_ep: bool | None,
    threads: int | None,
    offline: bool | None,
    lora: Path | None = None,
) -> LoadOptions:
    """LoadOptions of the arguments, the environment and the project file, in this order."""
    said = {
        "context_tokens": ctx,
        "provider": ep,
        "require_provider": require_ep,
        "threads": threads,
        "offline": offline,
    }
    settings = current(said)
    names = {field.name for field in fields(LoadOptions)} - {"lora"}
    chosen = {name: getattr(settings, name) for name in names}
    # `--ctx auto` overrides a number in the project file.
    chosen["context_tokens"] = chosen["context_tokens"] or None
    return LoadOptions(**chosen, lora=lora)


sampling_options = gathered(
    "sampling",
    SamplingChoice,
    click.option("-t", "--temperature", type=float, metavar="X", help="0: always the likeliest."),
    click.option("--top-k", type=int, metavar="N", help="Keep the N likeliest tokens; 0: all."),
    click.option("--top-p", type=float, metavar="P", help="Keep the likeliest P of the mass."),
    click.option("--min-p", type=float, metavar="P", help="Drop tokens below P of the likeliest."),
    click.option("--repeat-penalty", type=float, metavar="X", help="Above 1: repeat less."),
    click.option("--presence-penalty", type=float, metavar="X", help="Against used tokens."),
    click.option("--frequency-penalty", type=float, metavar="X", help="Against frequent tokens."),
    click.option("--seed", type=int, metavar="N", help="Seed of the random choices."),
)
answer_options = gathered(
    "answer",
    AnswerOptions,
    click.option("-s", "--system", metavar="TEXT", help="System message."),
    click.option(
        "-n",
        "--max-tokens",
        type=int,
        metavar="N",
        default=512,
        show_default=True,
        help="Stop after N tokens.",
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="Stop before TEXT; repeatable."),
)
load_options = gathered(
    "load",
    make_load_options,
    click.option("--ctx", type=Context(), metavar="N|auto", help="Context in tokens."),
    click.option("--ep", metavar="NAME|auto", help="Execution provider."),
    click.option("--require-ep", is_flag=True, default=None, help="Fail where --ep falls back."),
    click.option("--threads", type=int, metavar="N", help="Threads of the runtime."),
    click.option("--offline", is_flag=True, default=None, help="Fetch nothing."),
    click.option("--lora", type=Path, metavar="DIR", help="A PEFT adapter to answer with."),
)


def refuse(given: bool, message: str) -> None:
    """UsageError with `message` when `given`."""
    if given:
        raise UsageError(message)


def utf8(text: str, what: str) -> str:
    """`text` itself, or UsageError when it holds bytes that were not UTF-8 on the command line."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not valid UTF-8 at character {error.start}") from error
    return text
