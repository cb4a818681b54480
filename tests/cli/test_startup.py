"""Help is quick because it loads nothing; every command has some."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import click
import pytest

import edgellm
from edgellm.cli import COMMANDS, cli, main

HEAVY = {"numpy", "onnxruntime", "prompt_toolkit", "huggingface_hub", "tokenizers", "jinja2"}
HEAVY |= {"platformdirs", "tqdm", "psutil", "filelock", "asyncio", "ssl", "onnx_ir", "gguf"}


def modules_after(code: str, environment: dict[str, str]) -> set[str]:
    code += "\nimport sys; print('modules:', *sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split("modules:")[1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "-h"], ["chat", "--help"], []])
def test_help_loads_nothing_heavy(arguments: list[str], environment: dict[str, str]) -> None:
    code = f"from edgellm.cli import main; assert main({arguments!r}) == 0"
    assert not HEAVY & modules_after(code, environment)


def test_help_of_the_group_imports_no_command(environment: dict[str, str]) -> None:
    loaded = modules_after("from edgellm.cli import main; main(['--help'])", environment)
    assert not {f"edgellm.cli.{name}" for name in COMMANDS} & loaded


def test_importing_edgellm_does_nothing_else(environment: dict[str, str]) -> None:
    loaded = modules_after("import edgellm", environment)
    assert {name for name in loaded if name.startswith("edgellm")} == {"edgellm"}
    assert not (HEAVY | {"click", "dataclasses", "importlib.metadata"}) & loaded


def test_public_names_are_listed_and_those_of_this_module_resolve() -> None:
    assert set(edgellm.__all__) <= set(dir(edgellm))
    for name in set(edgellm.__all__) - {"load"}:
        assert getattr(edgellm, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        edgellm.nonsense  # noqa: B018


def test_every_command_that_exists_has_a_line_in_help_and_help_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = cli.list_commands(click.Context(cli))
    assert {"run", "chat"} <= set(names)
    assert main(["-h"]) == 0
    listing = capsys.readouterr().out
    for name in names:
        assert COMMANDS[name] in listing
        assert main([name, "-h"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"Usage: edgellm {name} ")
        assert "--debug" in out


def test_a_command_without_its_file_is_simply_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "later", "Not written yet.")
    assert main(["--help"]) == 0
    assert "later" not in capsys.readouterr().out
    assert main(["later"]) == 2


def test_version_is_that_of_the_distribution(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "edgellm 1.2.3\n"


def test_a_checkout_that_is_not_installed_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "edgellm 0+checkout\n"


def test_python_dash_m_is_the_same_command_line(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", "run", "m", "-n", "0"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "edgellm: max_tokens must be 1 or more, got 0\n"
