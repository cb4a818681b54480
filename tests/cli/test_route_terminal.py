"""A person at a terminal whose chat may ask a remote: consent, and a cable that is pulled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# importmode=importlib leaves that folder out of the path.
sys.path.append(str(Path(__file__).parents[1] / "routing" / "servers"))

from launch import Served, serve_scripted, write_answers

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
pytest.importorskip("termios", reason="this system has no pseudo-terminals")

Open = Callable[..., Any]
Run = Callable[..., Any]
PROMPT = ">>> "
QUESTION = "let it leave?"
MAIL = "write to ada@example.org"
LONG = "I walked a long way " * 40
KEY = "sk-0123456789abcdef"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    rows = [("hello", "hello from afar", 0.5), (MAIL, "gladly", 0.5), ("tell", LONG, 0.5)]
    answers = write_answers(tmp_path / "key.jsonl", rows)
    with serve_scripted(answers, "--accuracy", "1", "--token-ms", "20") as served:
        yield served


@pytest.fixture
def asking(server: Served) -> tuple[str, ...]:
    """prefer-remote with consent."""
    where = ("--remote", server.url(), "--remote-model", "big")
    return ("--route", "prefer-remote", "--privacy", "ask", *where)


def ask(child: Any, line: str, answer: str) -> None:
    child.expect(PROMPT)
    child.sendline(line)
    child.expect_exact(answer)


def test_private_data_leaves_after_a_yes_and_is_not_asked_for_twice(
    terminal: Open, server: Served, asking: tuple[str, ...]
) -> None:
    child = terminal("chat", "m", *asking)
    ask(child, MAIL, "found 1 email; it may go to big at 127.0.0.1:")
    child.expect_exact("email       ada@example.org")
    child.expect_exact(QUESTION)
    assert server.state()["received_bytes"] == 0
    child.sendline("s")
    child.expect_exact('"content": "write to ada@example.org"')
    child.expect_exact(QUESTION)
    assert server.state()["received_bytes"] == 0
    child.sendline("y")
    child.expect_exact("gladly")
    ask(child, "hello", "hello from afar")
    child.expect(PROMPT)
    assert server.state()["requests"] == 2


def test_a_no_keeps_the_answer_here_and_is_remembered(
    terminal: Open, server: Served, asking: tuple[str, ...]
) -> None:
    child = terminal("chat", "m", *asking)
    ask(child, MAIL, QUESTION)
    child.sendline("n")
    child.expect_exact(f"answer 1 to <{MAIL}>")
    child.expect_exact("found 1 email; stays here")
    ask(child, "hello", "answer 2 to <hello>")
    child.expect(PROMPT)
    assert QUESTION not in child.before
    # A new finding is a new question, and Ctrl-C takes it back.
    child.sendline("and to bob@example.org")
    child.expect_exact(QUESTION)
    child.sendcontrol("c")
    child.expect_exact("the question is taken back")
    child.expect(PROMPT)
    assert server.state()["received_bytes"] == 0


def test_run_asks_at_a_terminal_and_refuses_without_one(
    terminal: Open, edgellm: Run, server: Served, asking: tuple[str, ...]
) -> None:
    result = edgellm("run", "m", MAIL, *asking)
    assert (result.code, result.out, len(result.err.splitlines())) == (3, "", 1)
    assert "there is no terminal to ask on" in result.err
    result = edgellm("chat", "m", *asking, stdin=MAIL.encode())
    assert (result.code, result.out) == (3, "")
    assert server.state()["received_bytes"] == 0
    child = terminal("run", "m", MAIL, *asking)
    child.expect_exact(QUESTION)
    child.sendline("y")
    child.expect_exact("gladly")
    child.expect(pexpect.EOF)
    # Who only wants an offer is not asked before it is taken up.
    local = ("--route", "ask", *asking[2:])
    assert edgellm("run", "m", MAIL, *local).out == f"answer 1 to <{MAIL}>\n"


def test_a_cable_pulled_in_the_middle_of_an_answer_leaves_the_chat_going(
    terminal: Open, server: Served
) -> None:
    where = ("--remote", server.url(), "--remote-model", "big")
    child = terminal("chat", "m", "--route", "prefer-remote", *where, EDGELLM_REMOTE_KEY=KEY)
    ask(child, "tell", "I walked a long way I walked")
    server.close()
    # The local model goes on from what was shown.
    child.expect_exact("answer 1 to <tell>")
    child.expect("broke off.*continued here")
    seen = child.before
    ask(child, "hello", "answer 2 to <hello>")
    child.expect("big did not answer.*answered here")
    child.expect(PROMPT)
    child.sendcontrol("d")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert "Traceback" not in seen + child.before
    assert KEY not in seen + child.before
