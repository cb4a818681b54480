"""What a person sees and types, in a real pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
termios = pytest.importorskip("termios", reason="this system has no pseudo-terminals")

PROMPT = ">>> "
Open = Callable[..., "pexpect.spawn[str]"]


def chat(terminal: Open, *arguments: str) -> pexpect.spawn[str]:
    child = terminal("chat", "m", *arguments)
    child.expect(PROMPT)
    return child


def ask(child: pexpect.spawn[str], line: str, answer: str) -> None:
    child.sendline(line)
    child.expect_exact(answer)
    child.expect(PROMPT)


def leave(child: pexpect.spawn[str]) -> None:
    child.sendcontrol("d")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_run_streams_the_answer_as_it_is_made(terminal: Open) -> None:
    child = terminal("run", "m", "slow")
    child.expect_exact("word0 ")
    assert child.isalive()
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130
    assert child.before.endswith("\r\n")
    assert "word199" not in child.before


def test_run_shows_no_colour_and_lets_no_answer_steer_the_terminal(terminal: Open) -> None:
    child = terminal("run", "m", "notice escape", "--stats")
    child.expect(pexpect.EOF)
    assert "\x1b" not in child.before
    assert "\u241b[31mred" in child.before


def test_notices_are_dim_where_colour_is_welcome(terminal: Open) -> None:
    child = terminal("run", "m", "notice", NO_COLOR="")
    child.expect(pexpect.EOF)
    assert "\x1b[2ma notice\x1b[0m" in child.before
    child = terminal("run", "m", "full", NO_COLOR="", TERM="dumb")
    child.expect(pexpect.EOF)
    assert "\x1b" not in child.before


def test_run_without_a_prompt_is_a_chat(terminal: Open) -> None:
    child = terminal("run", "m", "-s", "sys")
    child.expect(PROMPT)
    ask(child, "hello", "answer 1 to <hello>")
    leave(child)


def test_run_without_a_prompt_refuses_what_a_chat_cannot_do(terminal: Open) -> None:
    for option in ("--json", "--raw", "--logprobs=1"):
        child = terminal("run", "m", option)
        child.expect_exact("needs a PROMPT")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 2


def test_chat_answers_in_turn_and_leaves_on_ctrl_d(terminal: Open) -> None:
    child = chat(terminal)
    ask(child, "one", "answer 1 to <one>")
    ask(child, "two", "answer 2 to <two>")
    leave(child)


def test_three_quotes_or_escape_enter_make_one_question_of_several_lines(terminal: Open) -> None:
    child = chat(terminal)
    child.sendline('"""first')
    child.expect_exact("...")
    child.sendline("")
    child.expect_exact("...")
    ask(child, 'second"""', "answer 1 to <first\r\n\r\nsecond>")
    child.send("third\x1b\r")
    child.expect_exact("...")
    ask(child, "fourth", "answer 2 to <third\r\nfourth>")
    leave(child)


def test_history_lasts_across_sessions_and_is_private(terminal: Open, tmp_path: Path) -> None:
    child = chat(terminal)
    ask(child, "remember me", "<remember me>")
    leave(child)
    path = tmp_path / "edgellm-home" / "chat_history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    child = chat(terminal)
    child.send("\x1b[A")
    ask(child, "", "answer 1 to <remember me>")
    leave(child)


def test_a_home_that_cannot_be_written_costs_the_history_only(
    terminal: Open, tmp_path: Path
) -> None:
    (tmp_path / "edgellm-home").write_text("a file where a folder should be")
    child = chat(terminal)
    ask(child, "hello", "<hello>")
    leave(child)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(terminal: Open, tmp_path: Path) -> None:
    child = chat(terminal)
    child.sendline("slow")
    child.expect_exact("word3 ")
    child.sendcontrol("c")
    child.expect_exact("stopped; what was said stays, /regen answers again")
    child.expect(PROMPT)
    ask(child, "/save talk.json", "saved 1 answer to")
    assert "word0 " in json.loads((tmp_path / "talk.json").read_text())["messages"][1]["content"]
    ask(child, "next", "answer 2 to <next>")
    leave(child)


def test_ctrl_c_before_the_first_word_takes_the_question_back(terminal: Open) -> None:
    child = chat(terminal)
    ask(child, "notice", "a notice")
    child.sendline("notice silent")
    child.expect_exact("a notice")
    child.sendcontrol("c")
    child.expect_exact("the question is taken back")
    child.expect(PROMPT)
    ask(child, "/show", "answers             1\r\n")
    leave(child)


def test_ctrl_c_clears_a_line_then_hints_then_leaves(terminal: Open) -> None:
    child = chat(terminal)
    child.send("half a question")
    child.expect_exact("question")
    child.sendcontrol("c")
    ask(child, "whole", "answer 1 to <whole>")
    child.sendcontrol("c")
    child.expect_exact("Ctrl-C once more, or Ctrl-D, leaves")
    child.expect(PROMPT)
    ask(child, "still here", "<still here>")
    child.sendcontrol("c")
    child.expect_exact("leaves")
    child.expect(PROMPT)
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_an_error_is_shown_and_the_conversation_goes_on(terminal: Open) -> None:
    child = chat(terminal)
    ask(child, "one", "<one>")
    ask(child, "full", "edgellm: the prompt has 900 tokens and the context is 512; shorten it")
    ask(child, "/set top_p 7", "edgellm: top_p must be in (0, 1], got 7.0")
    ask(child, "/sett top_p 1", "did you mean /set?")
    ask(child, "/load absent", "edgellm: absent is not a file")
    ask(child, "two", "<two>")
    ask(child, "/show", "answers             2\r\n")
    leave(child)


def test_regen_save_and_load_work_across_sessions(terminal: Open) -> None:
    child = chat(terminal)
    ask(child, "one", "answer 1 to <one>")
    ask(child, "/regen", "answer 2 to <one>")
    ask(child, "/save talk.json", "saved 1 answer to talk.json")
    leave(child)
    child = chat(terminal)
    ask(child, "/load talk.json", "loaded 1 answer from talk.json")
    ask(child, "/regen", "answer 1 to <one>")
    leave(child)


def test_tab_completes_commands_parameters_and_files(terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "unmistakable.txt").write_text("content of the file")
    child = chat(terminal)
    # Only what changes is drawn, so a completion shows as the letters it added.
    child.send("/rea\t")
    child.expect_exact("d")
    child.send(" unmis\t")
    child.expect_exact("takable.txt")
    ask(child, "", "read 19 characters")
    child.send("/set pres\t")
    child.expect_exact("ence_penalty")
    ask(child, " 1", "presence_penalty    1.0")
    ask(child, "sum up", "content of the file")
    leave(child)


def test_pasted_lines_are_one_question(terminal: Open) -> None:
    child = chat(terminal)
    child.send("\x1b[200~alpha\nbeta\x1b[201~")
    ask(child, "", "answer 1 to <alpha\r\nbeta>")
    leave(child)


def reads_lines(child: pexpect.spawn[str]) -> bool:
    """Whether the terminal is in the mode a shell expects: whole lines, echoed."""
    wanted = termios.ICANON | termios.ECHO
    return bool(termios.tcgetattr(child.child_fd)[3] & wanted == wanted)


@pytest.mark.parametrize("busy", [False, True], ids=["at the prompt", "while answering"])
def test_sigterm_ends_a_chat_and_gives_the_terminal_back(terminal: Open, busy: bool) -> None:
    child = chat(terminal)
    if busy:
        child.sendline("slow")
        child.expect_exact("word1 ")
    assert busy or not reads_lines(child)
    os.kill(child.pid, signal.SIGTERM)
    child.expect(pexpect.EOF)
    assert reads_lines(child)
    child.wait()
    assert child.exitstatus == 143
    assert not re.search("Traceback|Exception|internal", child.before)
