"""The command line. `main` is the console script; each command lives in a file of its name.

The table below is all that `--help` needs, so help imports no command. Answers go to stdout,
everything else to stderr; an error is one line, and its exit code comes from the error tree.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import FrameType

import click

from edgellm.errors import EdgellmError

# Each module edgellm/cli/<name>.py holds a click command called `command`.
COMMANDS = {
    "run": "Answer one prompt.",
    "chat": "Hold a conversation.",
    "pull": "Fetch a model into the store.",
    "models": "List the models in the store.",
    "show": "Tell what a model is and how it was checked.",
    "rm": "Remove a model from the store.",
    "export": "Turn a checkpoint into a bundle.",
    "bench": "Measure speed.",
    "eval": "Measure quality.",
    "route": "Decide when to ask a larger model.",
    "tune": "Compare ways to store a model.",
}
INTERRUPTED = 130


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same way out as Ctrl-C, but nobody may take it for a wish to continue."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is asked for."""

    package = "edgellm.cli"
    table: Mapping[str, str] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in self.table if find_spec(f"{self.package}.{name}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = import_module(f"{self.package}.{cmd_name}").command
        if not isinstance(found, click.Command):
            raise TypeError(f"{self.package}.{cmd_name}.command is not a click command")
        if not any(param.name == "debug" for param in found.params):
            found.params.append(debug_option())
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name]) for name in self.list_commands(ctx)])


class Debug:
    """Whether a traceback is wanted; known only while the arguments are being read."""

    wanted = False


def debug_option() -> click.Option:
    """--debug, which every command takes."""

    def note(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Debug).wanted = True

    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=note,
        help="Show the traceback of an error.",
    )


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        import edgellm

        click.echo(f"edgellm {edgellm.__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[debug_option()],
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Small language models on the machine in front of you.

    \b
    edgellm run smollm2-135m "Why is the sky blue?"
    edgellm chat
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; prints what went wrong, in one line."""
    debug = Debug()
    debug.wanted = os.environ.get("EDGELLM_LOG") == "debug"
    _prepare_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _invoke(list(sys.argv[1:] if arguments is None else arguments), debug)
    except BrokenPipeError:
        # The reader has seen enough (`| head`); that is success.
        _abandon_stdout()
        return 0
    except KeyboardInterrupt as error:
        return 128 + signal.SIGTERM if isinstance(error, Terminated) else INTERRUPTED
    # The one place that may catch everything: beyond it there is only the user.
    except Exception as error:
        return _report(error, debug)


def _invoke(arguments: list[str], debug: Debug) -> int:
    # Not `cli.main`: it turns Ctrl-C, SIGTERM and a closed pipe into one another.
    try:
        with cli.make_context("edgellm", arguments, obj=debug) as ctx:
            cli.invoke(ctx)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    return 0


def _report(error: Exception, debug: Debug) -> int:
    from edgellm.cli.terminal import complain

    if debug.wanted:
        import traceback

        click.echo(traceback.format_exc(), err=True, nl=False)
    if isinstance(error, EdgellmError):
        complain(str(error))
        return error.exit_code
    if isinstance(error, click.ClickException):
        complain(_usage_line(error))
        return error.exit_code
    if isinstance(error, OSError):
        # A full disk under `> answer.txt` is reported once, not again at exit.
        _abandon_stdout()
        complain(f"{error}; nothing more could be done")
        return 1
    complain(f"internal error: {type(error).__name__}: {error} (run with --debug)")
    return 1


def _usage_line(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    hint = f"; see {ctx.command_path} -h" if ctx is not None else ""
    return f"{error.format_message().rstrip('.')}{hint}"


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _prepare_streams() -> None:
    """A character the terminal cannot show becomes a question mark, not a failure."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _abandon_stdout() -> None:
    """What is still buffered goes nowhere, so that the interpreter's last flush stays quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
