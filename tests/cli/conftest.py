"""Three ways to run the command line on a scripted model: in this process, in another, in a pty."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgellm.cli import backend, main

SCRIPT = Path(__file__).with_name("scripted.py")
ROOT = Path(__file__).parents[2]


def _scripted() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scripted", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scripted = _scripted()


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str
    model: Any


@pytest.fixture
def edgellm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Result]]:
    """Calls `main` here; `stdin` is what a pipe holds. The model is None when none was loaded."""
    opened: list[Any] = []

    def open_backend(reference: str, options: Any) -> Any:
        opened.append(scripted.open_scripted(reference, options))
        opened[-1].options = options
        return opened[-1]

    def call(*arguments: str, stdin: bytes = b"") -> Result:
        opened.clear()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(arguments)
        out, err = capsys.readouterr()
        return Result(code, out, err, opened[-1] if opened else None)

    monkeypatch.setattr(backend, "open_backend", open_backend)
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def environment() -> dict[str, str]:
    """What a process needs to find the packages; prompt_toolkit must not ask a pty for answers."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "export")))
    return os.environ | {
        "PYTHONPATH": path,
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm",
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture
def start(
    environment: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the command line in a process of its own, its three streams being pipes."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(*arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | settings
        command = [sys.executable, str(SCRIPT), *arguments]
        started.append(subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def terminal(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts the command line in a pseudo-terminal; variables of its environment by name."""
    pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
    opened: list[Any] = []

    def launch(*arguments: str, **variables: str) -> Any:
        opened.append(
            pexpect.spawn(
                sys.executable,
                [str(SCRIPT), *arguments],
                env=environment | variables,
                cwd=str(tmp_path),
                encoding="utf-8",
                timeout=20,
                dimensions=(40, 100),
            )
        )
        return opened[-1]

    yield launch
    for child in opened:
        child.close(force=True)
