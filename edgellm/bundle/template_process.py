"""One worker process for chat templates, and the watch that ends it when it takes too much.

`subprocess` starts it, so nothing of the host program is forked or imported again; the interpreter
runs isolated (-I -S) and is told where jinja2 lies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from edgellm.errors import EdgellmError

_START_LIMIT_S = 30.0
_POLL_S = 0.02
# What Python and the C library need; the rest of the environment may hold secrets.
_ENVIRONMENT = ("TZ", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may cost beside the worker's own 20 MB; megabytes are 1e6 bytes.

    Ordinary turns take under a millisecond and some hundred kB.
    """

    seconds: float = 5.0
    memory_mb: int = 256
    characters: int = 16_000_000


class WorkerGone(Exception):
    """The worker ended before it answered; the message says why."""


class Worker:
    """A started worker. Not safe to share between threads: one question at a time."""

    def __init__(self, limits: Limits, python: str | None = None) -> None:
        self._limits = limits
        self._owner = os.getpid()
        self._process = _spawn(python or _interpreter())
        self._limited: bool | None = None
        settings = {
            "paths": _paths(),
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_mb * 10**6,
            "characters": limits.characters,
        }
        self._send(settings)

    @property
    def alive(self) -> bool:
        """Whether it can be asked by this process: not after a fork, which shares the pipe."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's answer; WorkerGone when it had to be ended."""
        if self._limited is None:
            with _Watch(self._process, _START_LIMIT_S, None) as watch:
                self._limited = bool(self._receive(watch).get("limited"))
        memory_mb = None if self._limited else self._limits.memory_mb
        with _Watch(self._process, self._limits.seconds, memory_mb) as watch:
            self._send(request)
            return self._receive(watch)

    def stop(self) -> None:
        """Ends the process and frees its pipes."""
        process = self._process
        if self._owner != os.getpid():
            # Our parent's child, not ours: forget it without a warning.
            process.returncode = 0
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close(pipe)

    def _send(self, message: Mapping[str, Any]) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        try:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()
        except OSError:
            # It is gone; `_receive` finds the end of its output and says why.
            return

    def _receive(self, watch: _Watch) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else b""
        try:
            answer = json.loads(line)
        except ValueError as error:
            status = self._process.wait()
            raise WorkerGone(watch.reason or f"it crashed with status {status}") from error
        if not isinstance(answer, dict):
            raise WorkerGone("its answer makes no sense")
        return answer


class _Watch:
    """Kills a process that takes too long or too much memory while the `with` block waits."""

    def __init__(
        self, process: subprocess.Popen[bytes], seconds: float, memory_mb: int | None
    ) -> None:
        self.reason = ""
        self._process = process
        self._seconds = seconds
        self._memory_mb = memory_mb
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        deadline = time.monotonic() + self._seconds
        while not self._done.wait(self._seconds if self._memory_mb is None else _POLL_S):
            if time.monotonic() >= deadline:
                self.reason = f"it takes longer than {self._seconds:g} s"
            elif self._memory_mb is not None and _rss_mb(self._process.pid) > self._memory_mb:
                self.reason = f"it needs more than {self._memory_mb} MB"
            if self.reason:
                self._process.kill()
                return


def _rss_mb(pid: int) -> float:
    import psutil

    try:
        return float(psutil.Process(pid).memory_info().rss) / 1e6
    except psutil.Error:
        return 0.0


def _spawn(python: str) -> subprocess.Popen[bytes]:
    command = [
        python,
        "-I",
        "-S",
        "-X",
        "utf8",
        str(Path(__file__).with_name("template_worker.py")),
    ]
    # Ctrl-C on the terminal is for us, not for the worker.
    apart: dict[str, Any] = {"process_group": 0}
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        apart = {"creationflags": flags}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            **apart,
        )
    except OSError as error:
        raise EdgellmError(f"cannot start {python} to render chat templates: {error}") from error


def _interpreter() -> str:
    if not sys.executable or getattr(sys, "frozen", False):
        raise EdgellmError(
            "this program is not a Python interpreter, so it cannot render chat templates; "
            "pass Renderer(python=...) the path of one"
        )
    return sys.executable


def _paths() -> list[str]:
    """The folders that hold jinja2 and what it needs, found without importing it."""
    folders: dict[str, None] = {}
    for name in ("jinja2", "markupsafe"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise EdgellmError(f"{name} is not installed; reinstall edgellm")
        folders[str(Path(spec.origin).parent.parent)] = None
    return list(folders)


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:
        # Closing flushes what a dead worker no longer reads.
        return
