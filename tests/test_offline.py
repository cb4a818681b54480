"""Nothing phones home: the command line works with the network denied, and telemetry is off.

As root on Linux the network is denied by a namespace of its own, without even a loopback device;
elsewhere by a `sitecustomize` that closes Python's sockets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TELEMETRY = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
# ONNX Runtime also stays silent where it sees these; the test must not pass for that reason.
CI_MARKS = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "PYTEST_CURRENT_TEST")
CLOSED_SOCKETS = """
import socket

def denied(*args, **kwargs):
    raise OSError("the network is denied")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = denied
socket.create_connection = denied
"""
CONNECT = "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)"
# Notes the two variables at the moment somebody looks for onnxruntime.
LOAD = """
import json, os, sys

class Witness:
    seen = None

    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime" and self.seen is None:
            self.seen = [os.environ.get(variable) for variable in NAMES]

NAMES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
witness = Witness()
sys.meta_path.insert(0, witness)
from edgellm.runtime import session
early = "onnxruntime" in sys.modules
session.load_onnxruntime()
after = [os.environ.get(variable) for variable in NAMES]
print(json.dumps({"early": early, "at_import": witness.seen, "after": after}))
"""


class Denied:
    """Runs Python with the network denied, an own home, and no variable that switches off."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir()
        self.prefix = ["unshare", "--net"] if _can_unshare() else []
        hidden = (*TELEMETRY, *CI_MARKS)
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden}
        self.environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
        if not self.prefix:
            (home.parent / "closed").mkdir()
            (home.parent / "closed" / "sitecustomize.py").write_text(CLOSED_SOCKETS)
            paths = [str(home.parent / "closed"), os.environ.get("PYTHONPATH", "")]
            self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, sys.executable, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def edgellm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "edgellm", *arguments)


def _can_unshare() -> bool:
    try:
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


@pytest.fixture
def denied(tmp_path: Path) -> Denied:
    return Denied(tmp_path / "user")


def test_the_network_is_really_denied(denied: Denied) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        code = CONNECT.format(port=server.getsockname()[1])
        assert denied.python("-c", code).returncode != 0
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["models"], ["models", "--json"]]
)
def test_the_command_line_works_without_network(denied: Denied, arguments: list[str]) -> None:
    done = denied.edgellm(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        # The user's own --offline refuses; a model that is simply not there is not found.
        (["run", "smollm2-135m", "hello", "--offline"], 3),
        (["pull", "smollm2-135m", "--offline"], 3),
        (["show", "smollm2-135m"], 4),
        (["rm", "smollm2-135m", "--yes"], 4),
    ],
)
def test_a_model_that_is_not_there_is_one_line(
    denied: Denied, arguments: list[str], exit_code: int
) -> None:
    done = denied.edgellm(*arguments)
    assert done.returncode == exit_code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_telemetry_is_switched_off_before_onnxruntime_is_imported(denied: Denied) -> None:
    done = denied.python("-c", LOAD)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"early": False, "at_import": ["1", "1"], "after": ["1", "1"]}


def test_onnxruntime_leaves_no_device_id_and_no_event_queue(denied: Denied) -> None:
    # With telemetry on, 1.31.1 writes ~/.cache/Microsoft/DeveloperTools/.onnxruntime at import.
    code = "from edgellm.runtime import session; session.load_onnxruntime()"
    done = denied.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert [path for path in denied.home.rglob("*") if "icrosoft" in str(path)] == []


@pytest.mark.weights
def test_a_model_answers_without_network_and_leaves_nothing_behind(
    denied: Denied, smollm2_bundle: Path
) -> None:
    done = denied.edgellm("run", str(smollm2_bundle), "What is 2 + 2?", "-n", "8", "-t", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert [path for path in denied.home.rglob("*") if "icrosoft" in str(path)] == []
