"""A reader that leaves, Ctrl-C and SIGTERM: quiet, with what was said so far kept."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_signal_keeps_the_partial_answer_and_ends_the_line(
    start: Start, number: signal.Signals, code: int, command: str
) -> None:
    arguments = ["run", "m", "slow"] if command == "run" else ["chat", "m"]
    process = start(*arguments)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"" if command == "run" else b"slow\n")
    process.stdin.close()
    process.stdin = None
    first = process.stdout.read(6)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert first == b"word0 "
    assert out.endswith(b"\n")
    assert b"word199" not in out
    assert b"Traceback" not in err
    assert (err == b"") == (command == "run")


def test_json_prints_no_half_document_when_interrupted(start: Start) -> None:
    process = start("run", "m", "notice slow", "--json")
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.close()
    process.stdin = None
    assert process.stderr.readline() == b"a notice\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_reader_that_has_seen_enough_ends_it_quietly(start: Start, command: str) -> None:
    process = start(*(["run", "m"] if command == "run" else ["chat", "m"]))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"slow\n")
    process.stdin.close()
    process.stdin = None
    assert process.stdout.read(6) == b"word0 "
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")


def test_closed_streams_are_no_failure(environment: dict[str, str]) -> None:
    script = str(Path(__file__).with_name("scripted.py"))
    shell = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, script]
    done = subprocess.run(
        [*shell, "run", "m", "hi"], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
