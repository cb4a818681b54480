"""Starts the servers of this folder as processes of their own, and asks them what they saw."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent


class Served:
    """A running server: `ports` by name. It ends with the `with` block, or with this process."""

    def __init__(self, script: str, *arguments: str) -> None:
        command = [sys.executable, str(HERE / script), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"{script} did not start")
        self.ports: dict[str, int] = json.loads(line)

    def url(self, path: str = "", port: str = "main", scheme: str = "http") -> str:
        """A base URL on this server; the fault server takes its fault as `path`."""
        return f"{scheme}://127.0.0.1:{self.ports[port]}{'/' if path else ''}{path}/v1"

    def state(self) -> dict[str, Any]:
        """What the server has counted, asked on its side port."""
        address = f"http://127.0.0.1:{self.ports['side']}/"
        with urllib.request.urlopen(address, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def wait_for(self, fault: str, key: str, value: object) -> dict[str, Any]:
        """The counts of a fault once `key` is `value`; a server learns of a closed socket late."""
        deadline = time.monotonic() + 10
        while (found := self.state().get(fault, {})).get(key) != value:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{fault}: {key} is {found.get(key)}, not {value}")
            time.sleep(0.01)
        return dict(found)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve_faults() -> Served:
    return Served("fault.py")


def serve_scripted(answers: Path, *arguments: str) -> Served:
    """The scripted remote on a key file that `write_answers` wrote."""
    return Served("scripted.py", str(answers), *arguments)


def write_answers(path: Path, rows: Iterable[tuple[str, str, float]]) -> Path:
    """`path`, now the key of (prompt, answer, difficulty) rows; prompts only as hashes."""
    with path.open("w") as file:
        for prompt, answer, difficulty in rows:
            digest = hashlib.sha256(prompt.encode()).hexdigest()
            row = {"prompt_sha256": digest, "answer": answer, "difficulty": difficulty}
            file.write(json.dumps(row) + "\n")
    return path
