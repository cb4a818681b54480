"""`run` and `chat` with a remote: a scripted server in another process, over real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.cli import backend
from edgellm.routing.options import POLICIES
from edgellm.routing.signals import Observed

# importmode=importlib leaves that folder out of the path.
sys.path.append(str(Path(__file__).parents[1] / "routing" / "servers"))

from launch import Served, serve_scripted, write_answers

Run = Callable[..., Any]
KEY = "sk-0123456789abcdef"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    rows = [("hello", "hello from afar", 0.5), ("again", "again from afar", 0.5)]
    with serve_scripted(write_answers(tmp_path / "key.jsonl", rows), "--accuracy", "1") as served:
        yield served


@pytest.fixture
def remote(server: Served) -> tuple[str, ...]:
    return ("--remote", server.url(), "--remote-model", "big")


class Pack:
    def __init__(self, p: float) -> None:
        self.p = p

    def before(self, observed: Observed) -> float | None:
        return None

    def after(self, observed: Observed) -> float:
        return self.p


@pytest.fixture
def unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "open_confidence", lambda model: Pack(0.1))


def test_a_remote_that_is_named_gets_nothing_without_a_policy(
    edgellm: Run, server: Served, remote: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_REMOTE_KEY", KEY)
    result = edgellm("run", "m", "hello", *remote)
    assert (result.out, result.err) == ("answer 1 to <hello>\n", "")
    edgellm("chat", "m", *remote, stdin=b"hello\nagain\n")
    assert server.state()["received_bytes"] == 0


def test_the_answer_of_a_remote_has_a_badge(edgellm: Run, remote: tuple[str, ...]) -> None:
    result = edgellm("run", "m", "hello", "--route", "remote-only", *remote)
    assert (result.code, result.out) == (0, "hello from afar\n")
    assert result.err == "[remote · remote-only: big answered]\n"


def test_json_says_who_answered_and_why(edgellm: Run, remote: tuple[str, ...]) -> None:
    result = edgellm("run", "m", "hello", "--json", "--route", "prefer-remote", *remote)
    document = json.loads(result.out)
    assert (document["text"], document["model"]) == ("hello from afar", "big")
    assert document["route"] == {
        "source": "remote",
        "policy": "prefer-remote",
        "reason": "prefer-remote: big answered",
        "p_correct": None,
        "cost_usd": 0.0,
    }
    assert document["usage"]["completion_tokens"] > 0


@pytest.mark.usefixtures("unsure")
def test_a_doubtful_answer_goes_to_the_remote(edgellm: Run, remote: tuple[str, ...]) -> None:
    result = edgellm("run", "m", "hello", "--route", "cascade", *remote)
    assert result.out == "hello from afar\n"
    assert result.err == "[remote · cascade: unsure here (p 0.10 below 0.70); big answered]\n"
    result = edgellm("run", "m", "hello", "--route", "cascade", "--threshold", "0.05", *remote)
    assert result.out == "answer 1 to <hello>\n"
    assert result.err == "[local · p 0.10 · cascade: confident here]\n"
    told = edgellm("route", "explain").out
    assert "after       P(correct) 0.100 of the local answer" in told
    assert "signals     logprob_q0 -0.125, " in told
    assert "answer_tokens 4, prompt_tokens 31" in told


def test_the_environment_names_the_remote_and_its_key_is_never_shown(
    edgellm: Run, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_REMOTE_URL", server.url())
    monkeypatch.setenv("EDGELLM_REMOTE_MODEL", "big")
    monkeypatch.setenv("EDGELLM_REMOTE_KEY", KEY)
    result = edgellm("run", "m", "hello", "--route", "prefer-remote", "--debug")
    assert result.out == "hello from afar\n"
    assert server.state()["keys"] == [f"Bearer {KEY}"]
    server.close()
    result = edgellm("run", "m", "hello", "--route", "remote-only", "--debug")
    assert result.code == 4
    assert KEY not in result.out + result.err


def test_offline_keeps_the_answer_here(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    result = edgellm("run", "m", "hello", "--route", "prefer-remote", "--offline", *remote)
    assert result.out == "answer 1 to <hello>\n"
    assert "offline is set; stays here" in result.err
    result = edgellm("run", "m", "hello", "--route", "remote-only", "--offline", *remote)
    assert (result.code, result.out) == (4, "")
    assert server.state()["received_bytes"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--route", "cascade"), "--remote URL --remote-model NAME"),
        (("--route", "best"), "local-only"),
        (("--remote", "http://127.0.0.1:9/v1"), "--remote-model"),
        (("--remote", "http://example.org/v1", "--remote-model", "x"), "unencrypted"),
        (("--threshold", "2"), "threshold must be in [0, 1]"),
        (("--risk", "2"), "risk must be between 0 and 1"),
        (("--risk", "0.1", "--threshold", "0.5"), "either --threshold or --risk"),
    ],
)
def test_a_wrong_choice_is_refused_before_a_model_is_loaded(
    edgellm: Run, arguments: tuple[str, ...], words: str
) -> None:
    for command in (("run", "m", "hello"), ("chat", "m")):
        result = edgellm(*command, *arguments)
        assert (result.code, result.model) == (2, None)
        assert len(result.err.splitlines()) == 1
        assert words in result.err


def test_a_shadow_is_asked_after_the_answer_and_logged(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    shadow = ("--route", "shadow", "--shadow-share", "1", *remote)
    result = edgellm("run", "m", "hello", *shadow)
    assert (result.code, result.out) == (0, "answer 1 to <hello>\n")
    assert server.state()["requests"] == 1
    (row,) = json.loads(edgellm("route", "log", "--json").out)
    assert (row["source"], row["propensity"], row["shadow_agrees"]) == ("local", 1.0, False)
    result = edgellm("run", "m", "hello", "--route", "shadow", "--shadow-share", "0", *remote)
    assert result.code == 0
    assert server.state()["requests"] == 1


def test_chat_shows_a_badge_and_changes_its_policy(edgellm: Run, remote: tuple[str, ...]) -> None:
    script = b"/route\nhello\n/route prefer-remote\nhello\n/route\n/route local-only\nhello\n"
    result = edgellm("chat", "m", *remote, stdin=script)
    assert result.out.splitlines() == [
        "answer 1 to <hello>", "hello from afar", "answer 2 to <hello>"
    ]  # fmt: skip
    lines = result.err.splitlines()
    assert lines[:2] == ["policy              local-only", "remote              big"]
    assert lines[4] == "[remote · prefer-remote: big answered]"
    assert lines[7].startswith("last answer         [remote · prefer-remote")
    assert sum(line.startswith("[") for line in lines) == 1


def test_ask_takes_up_the_offer(edgellm: Run, remote: tuple[str, ...]) -> None:
    script = b"hello\n/ask\nagain\n"
    result = edgellm("chat", "m", "--route", "ask", *remote, stdin=script)
    answers = ["answer 1 to <hello>", "hello from afar", "answer 2 to <again>"]
    assert result.out.splitlines() == answers
    assert "[local · ask: answered here, big can be asked too]" in result.err
    # The remote's answer took the place of the local one.
    turns = [message.content for message in result.model.requests[-1].messages]
    assert turns == ["hello", "hello from afar", "again"]


@pytest.mark.parametrize("line", [b"/route best\n", b"/route cascade\n", b"hi\n/ask\n", b"/ask\n"])
def test_chat_refuses_what_cannot_be_in_one_line(edgellm: Run, line: bytes) -> None:
    result = edgellm("chat", "m", stdin=line)
    assert result.code == 2
    assert result.err.startswith("edgellm: ")
    assert len(result.err.splitlines()) == 1


def test_a_misspelt_policy_gets_a_suggestion_and_the_list(edgellm: Run) -> None:
    result = edgellm("chat", "m", stdin=b"/route cascde\n")
    assert "did you mean cascade?" in result.err
    assert all(policy in result.err for policy in POLICIES)


def test_chat_goes_on_here_when_the_cable_is_pulled(
    start: Callable[..., subprocess.Popen[bytes]], server: Served, remote: tuple[str, ...]
) -> None:
    process = start("chat", "m", "--route", "prefer-remote", *remote)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"hello from afar\n"
    server.close()
    process.stdin.write(b"again\n")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"answer 1 to <again>\n")
    assert b"Traceback" not in err
    assert b"big did not answer" in err
    assert b"answered here" in err


@pytest.mark.parametrize("command", ["run", "chat"])
def test_help_names_every_policy_without_loading_http(command: str) -> None:
    code = (
        "import sys; from edgellm.cli import main; main([sys.argv[1], '-h']); "
        "print(sorted({'numpy', 'httpcore', 'ssl'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stderr == "[]\n"
    shown = "".join(done.stdout.split())
    assert all(policy in shown for policy in POLICIES)
