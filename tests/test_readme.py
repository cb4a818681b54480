"""README.md tells the truth: its commands exist, its code compiles, and what can run here runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from edgellm.cli import cli

README = Path(__file__).parent.parent / "README.md"
RUN = """pip install -e '.[cpu,export]' && edgellm run smollm2-135m "Why is the sky blue?\""""
TEST = "pip install -e '.[cpu,export,test]' && pytest"


@dataclass(frozen=True)
class Block:
    line: int
    info: str
    text: str


def blocks() -> list[Block]:
    """The fenced blocks with their info strings and the lines they start at."""
    text = README.read_text()
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(text.count("\n", 0, m.start()) + 1, m[1].strip(), m[2]) for m in found]


def shell_lines() -> Iterator[tuple[int, str]]:
    for block in blocks():
        if block.info not in ("console", "bash"):
            continue
        for i, line in enumerate(block.text.splitlines(), block.line + 1):
            prompted = line.startswith("$ ")
            if prompted or block.info == "bash":
                yield i, line.removeprefix("$ ")


def edgellm_calls() -> list[tuple[int, list[str]]]:
    """The arguments of every `edgellm …` in a shell block, also behind && and pipes."""
    calls = []
    for number, line in shell_lines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        call: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if call[:1] == ["edgellm"]:
                    calls.append((number, call[1:]))
                call = []
            else:
                call.append(word)
    return calls


def parse(arguments: list[str]) -> None:
    """Reads a command line as click would, without running it; click's own error if it is wrong."""
    group: click.Group = cli
    ctx = click.Context(cli, info_name="edgellm", **cli.context_settings)
    rest = list(arguments)
    while True:
        name = rest.pop(0) if rest else ""
        command = group.get_command(ctx, name)
        if command is None:
            raise click.UsageError(f"no such command {name!r}")
        ctx = click.Context(command, info_name=name, parent=ctx)
        if not isinstance(command, click.Group):
            break
        group = command
    values, left, _ = command.make_parser(ctx).parse_args(rest)
    if left:
        raise click.UsageError(f"too many arguments: {left}")
    for param in command.params:
        # Absent is a private mark of click's, not None.
        given = isinstance(values.get(str(param.name)), str | tuple | list)
        if isinstance(param, click.Argument) and param.required and not given:
            raise click.UsageError(f"missing argument {param.name}")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(call, id=f"line {number}: {shlex.join(call)}")
        for number, call in edgellm_calls()
    ],
)
def test_a_command_line_exists_as_written(arguments: list[str]) -> None:
    try:
        parse(arguments)
    except click.ClickException as error:
        pytest.fail(f"README: edgellm {shlex.join(arguments)}: {error.format_message()}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["route"],
        ["route", "fly"],
        ["run", "--no-such-option"],
        ["pull"],
        ["pull", "a", "b"],
        ["run", "-n"],
    ],
)
def test_a_wrong_command_line_is_noticed(arguments: list[str]) -> None:
    with pytest.raises(click.ClickException):
        parse(arguments)


def test_every_command_is_shown() -> None:
    shown = {arguments[0] for _, arguments in edgellm_calls()}
    missing = set(cli.list_commands(click.Context(cli))) - shown
    assert not missing, f"README shows no example of: {sorted(missing)}"


@pytest.mark.parametrize("line", [RUN, TEST])
def test_the_two_commands_of_the_contract_are_there(line: str) -> None:
    assert line in [found for _, found in shell_lines()]


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, id=f"line {block.line}") for block in blocks() if "python" in block.info],
)
def test_python_blocks_compile_and_run(block: Block, tmp_path: Path) -> None:
    compile(block.text, f"README.md:{block.line}", "exec")
    if "needs-weights" not in block.info:
        command = [sys.executable, "-W", "error", "-c", block.text]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.weights
def test_python_blocks_that_need_weights_run(smollm2_bundle: Path, tmp_path: Path) -> None:
    needy = [block for block in blocks() if block.info == "python needs-weights"]
    assert needy
    for block in needy:
        code = block.text.replace('"smollm2-135m"', repr(str(smollm2_bundle)))
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_code_blocks_say_what_they_are() -> None:
    known = {"", "console", "bash", "python", "python needs-weights"}
    assert {block.info for block in blocks()} <= known


def test_the_exit_codes_are_those_of_the_error_tree() -> None:
    from edgellm import errors

    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README.read_text(), re.MULTILINE)}
    raised = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.EdgellmError)
    }
    assert codes == raised | {0, 130}
