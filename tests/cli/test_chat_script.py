"""`edgellm chat` fed by a pipe: each line a turn, each command obeyed, the first error the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm.cli.slash import COMMANDS
from edgellm.stream import Message

Run = Callable[..., Any]


def test_each_line_is_a_turn_of_one_conversation(edgellm: Run) -> None:
    result = edgellm("chat", "m", stdin=b"one\n\n  \ntwo")
    assert result.out == "answer 1 to <one>\nanswer 2 to <two>\n"
    assert result.err == ""
    assert result.model.requests[1].messages == (
        Message("user", "one"),
        Message("assistant", "answer 1 to <one>"),
        Message("user", "two"),
    )
    assert result.model.closed


def test_three_quotes_hold_several_lines_together(edgellm: Run) -> None:
    result = edgellm("chat", "m", stdin=b'"""\n/exit\nsecond\n"""\n"""same line"""\n')
    questions = [request.messages[-1].content for request in result.model.requests]
    assert questions == ["/exit\nsecond", "same line"]


def test_options_hold_for_every_turn(edgellm: Run) -> None:
    result = edgellm("chat", "m", "-s", "sys", "-n", "2", "-t", "0", "--stats", stdin=b"a\nb\n")
    for request in result.model.requests:
        assert request.messages[0] == Message("system", "sys")
        assert request.sampling.temperature == 0
    assert result.err.count("memory ") == 2
    assert "stopped at 2 tokens (-n); /set max_tokens allows a longer answer" in result.err


def test_regen_replaces_the_answer(edgellm: Run) -> None:
    result = edgellm("chat", "m", stdin=b"one\n/regen\ntwo\n")
    assert result.model.requests[1].messages == (Message("user", "one"),)
    assert result.model.requests[2].messages[1] == Message("assistant", "answer 2 to <one>")


def test_regen_says_when_the_answer_cannot_change(edgellm: Run) -> None:
    result = edgellm("chat", "m", "-t", "0", stdin=b"one\n/regen\n")
    assert "temperature is 0, so the answer will be the same" in result.err
    result = edgellm("chat", "m", "--seed", "1", stdin=b"one\n/regen\n")
    assert "the seed is fixed" in result.err


def test_clear_forgets_the_words_and_keeps_the_settings(edgellm: Run) -> None:
    script = b"/system Be a cat.\n/set top_k 5\none\n/clear\ntwo\n"
    request = edgellm("chat", "m", stdin=script).model.requests[1]
    assert request.messages == (Message("system", "Be a cat."), Message("user", "two"))
    assert request.sampling.top_k == 5


def test_system_is_shown_set_and_removed(edgellm: Run) -> None:
    result = edgellm("chat", "m", stdin=b'/system\n/system Be a cat.\none\n/system ""\ntwo\n')
    assert [request.messages[0].role for request in result.model.requests] == ["system", "user"]
    assert result.err.splitlines() == [
        "system message: none",
        "system message: Be a cat.",
        "system message: none",
    ]


def test_set_changes_what_the_next_answer_is_asked_with(edgellm: Run) -> None:
    script = b"/set top-p 0.5\n/set seed 3\n/set max_tokens 2\n/set stop END\none\n"
    script += b"/set seed default\n/set top_p default\n/set max_tokens default\ntwo\n"
    first, second = edgellm("chat", "m", stdin=script).model.requests
    assert (first.sampling.top_p, first.sampling.seed) == (0.5, 3)
    assert (first.max_tokens, first.stop) == (2, ("END",))
    assert (second.sampling.top_p, second.sampling.seed, second.max_tokens) == (0.9, None, 512)


def test_show_and_set_list_what_holds(edgellm: Run) -> None:
    result = edgellm("chat", "m", "-s", "sys", stdin=b"one\n/show\n/set\n")
    for line in (
        "model               m",
        "system              sys",
        "last answer used    35 tokens of context",
    ):
        assert line in result.err
    assert result.err.count("temperature         0.2") == 2


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("/foo", 2, "unknown command /foo; /help lists them"),
        ("/regn", 2, "unknown command /regn, did you mean /regen?; /help lists them"),
        ("/regen", 2, "there is no answer yet"),
        ("/set temprature 1", 2, "unknown parameter temprature, did you mean temperature?"),
        ("/set top_p", 2, "/set top_p needs a value"),
        ("/set top_p 7", 2, "top_p must be in (0, 1], got 7.0"),
        ("/set top_k 1.5", 2, "top_k must be a whole number, got '1.5'"),
        ("/set temperature hot", 2, "temperature must be a number, got 'hot'"),
        ("/set max_tokens 0", 2, "max_tokens must be 1 or more, got 0"),
        ("/read", 2, "/read needs a file name"),
        ("/read absent", 4, "absent is not a file; check the name"),
        ("/load absent", 4, "absent is not a file; check the name"),
        ("full", 3, "the prompt has 900 tokens and the context is 512; shorten it"),
        ("crash", 1, "internal error: ZeroDivisionError"),
        ('"""open\nend', 2, 'stdin ended inside a block; close it with """'),
        ("\udcff", 2, "stdin is not valid UTF-8 in line 1"),
    ],
)
def test_the_first_error_ends_a_script_with_its_code(
    edgellm: Run, script: str, code: int, message: str
) -> None:
    stdin = (script + "\nnever asked\n").encode(errors="surrogateescape")
    result = edgellm("chat", "m", stdin=stdin)
    assert (result.code, result.out) == (code, "")
    assert f"edgellm: {message}" in result.err
    assert len(result.err.splitlines()) == 1
    assert result.model.closed


def test_exit_and_its_cousins_leave(edgellm: Run) -> None:
    for word in (b"/exit", b"/quit", b"/bye"):
        result = edgellm("chat", "m", stdin=word + b"\nnever asked\n")
        assert (result.code, result.out, result.err) == (0, "", "")


def test_help_names_every_command_and_what_ctrl_c_does(edgellm: Run) -> None:
    err = edgellm("chat", "m", stdin=b"/help\n").err
    for name in COMMANDS:
        assert f"\n{name} " in f"\n{err}"
    assert "Ctrl-C stops an answer: what was said stays" in err


def test_read_puts_a_file_before_the_next_question_only(edgellm: Run, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("alpha\nbeta\n")
    script = b'/read "my notes.txt"\nsum up\nand now?\n'
    result = edgellm("chat", "m", stdin=script)
    questions = [request.messages[-1].content for request in result.model.requests]
    assert questions == ["File my notes.txt:\nalpha\nbeta\n\nsum up", "and now?"]


def test_regen_keeps_a_file_waiting_for_the_next_question(edgellm: Run, tmp_path: Path) -> None:
    (tmp_path / "n").write_text("alpha")
    result = edgellm("chat", "m", stdin=b"one\n/read n\n/regen\ntwo\n")
    assert result.model.requests[-1].messages[-1].content == "File n:\nalpha\n\ntwo"


def test_save_and_load_continue_a_conversation(edgellm: Run, tmp_path: Path) -> None:
    saved = edgellm("chat", "m", stdin=b"/set top_k 4\none\n/save talk.json\n")
    assert saved.err.endswith("saved 1 answer to talk.json\n")
    result = edgellm("chat", "other", stdin=b"/load talk.json\ntwo\n")
    assert "made with m; other goes on" in result.err
    (request,) = result.model.requests
    assert [message.content for message in request.messages] == ["one", "answer 1 to <one>", "two"]
    assert request.sampling.top_k == 4


def test_stats_is_a_switch_that_shows_the_last_figures(edgellm: Run) -> None:
    result = edgellm("chat", "m", stdin=b"one\n/stats\ntwo\n/stats\nthree\n")
    assert result.err.count("tokens   31 in the prompt") == 2


def test_json_of_the_saved_file_is_versioned(edgellm: Run, tmp_path: Path) -> None:
    edgellm("chat", "m", stdin=b"one\n/save talk.json\n")
    raw = json.loads((tmp_path / "talk.json").read_text())
    assert (raw["edgellm_chat"], raw["model"]) == (1, "m")
