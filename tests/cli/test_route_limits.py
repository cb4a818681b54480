"""What leaves, what it costs and what is written down, over the real command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# importmode=importlib leaves that folder out of the path.
sys.path.append(str(Path(__file__).parents[1] / "routing" / "servers"))

from launch import Served, serve_scripted, write_answers

Run = Callable[..., Any]
KEY = "sk-0123456789abcdef"
MAIL = "write to ada@example.org"
REMOTE_ONLY = ("--route", "remote-only")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    rows = [("hello", "hello from afar", 0.5), (MAIL, "gladly", 0.5)]
    with serve_scripted(write_answers(tmp_path / "key.jsonl", rows), "--accuracy", "1") as served:
        yield served


@pytest.fixture
def remote(server: Served) -> tuple[str, ...]:
    return ("--remote", server.url(), "--remote-model", "big")


@pytest.mark.parametrize("policy", ["remote-only", "prefer-remote", "hedge", "cascade", "shadow"])
def test_private_data_stays_here_by_default_whatever_the_policy(
    edgellm: Run, server: Served, remote: tuple[str, ...], policy: str
) -> None:
    result = edgellm("run", "m", MAIL, "--route", policy, "--shadow-share", "1", *remote)
    assert (result.code, result.out) == (0, f"answer 1 to <{MAIL}>\n")
    assert f"{policy}: found 1 email; stays here" in result.err
    assert "ada@" not in result.err
    # The conversation stays here too, though the second question holds nothing.
    edgellm("chat", "m", "--route", policy, *remote, stdin=f"{MAIL}\nhello\n".encode())
    assert server.state()["received_bytes"] == 0


def test_masked_text_leaves_without_the_finding(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    result = edgellm("run", "m", MAIL, "--privacy", "mask", *REMOTE_ONLY, *remote)
    assert result.out == "I have no answer to this.\n"
    assert server.state()["unknown_prompts"] == 1


def test_block_refuses_and_off_lets_it_leave(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    result = edgellm("run", "m", MAIL, "--privacy", "block", *REMOTE_ONLY, *remote)
    assert (result.code, result.out, len(result.err.splitlines())) == (3, "", 1)
    assert server.state()["received_bytes"] == 0
    assert edgellm("run", "m", MAIL, "--privacy", "off", *REMOTE_ONLY, *remote).out == "gladly\n"


def test_denied_text_never_leaves(edgellm: Run, server: Served, remote: tuple[str, ...]) -> None:
    deny = ("--deny", "h.llo", "--privacy", "off")
    result = edgellm("run", "m", "HELLO", *deny, *REMOTE_ONLY, *remote)
    assert (result.code, len(result.err.splitlines())) == (3, 1)
    assert server.state()["received_bytes"] == 0


def test_a_folder_may_ask_for_more_care_and_not_for_less(
    edgellm: Run, server: Served, remote: tuple[str, ...], tmp_path: Path
) -> None:
    project = tmp_path / "edgellm.toml"
    project.write_text('deny = ["hello"]\nprivacy = "block"\nbudget = 1\n')
    result = edgellm("run", "m", "hello", *REMOTE_ONLY, *remote)
    assert result.code == 3
    for line in ('privacy = "off"', 'privacy = "mask"', "deny = [1]", 'route = "remote-only"'):
        project.write_text(line)
        result = edgellm("run", "m", "hello", *REMOTE_ONLY, *remote)
        assert (result.code, len(result.err.splitlines())) == (2, 1), line
    assert server.state()["received_bytes"] == 0


def test_a_cap_refuses_before_anything_is_sent_and_an_unknown_price_is_not_free(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    cap = (*REMOTE_ONLY, "--budget", "0.01")
    result = edgellm("run", "m", "hello", *cap, *remote)
    assert (result.code, len(result.err.splitlines())) == (3, 1)
    assert "the price of big is unknown" in result.err
    dear = ("--remote-price", "1000,1000")
    result = edgellm("run", "m", "hello", *cap, *remote, *dear)
    assert result.code == 3
    assert server.state()["received_bytes"] == 0
    cheap = ("--remote-price", "1,2")
    assert edgellm("run", "m", "hello", *cap, *remote, *cheap).out == "hello from afar\n"


def test_a_price_is_that_of_the_users_table_unless_an_argument_says_otherwise(
    edgellm: Run, remote: tuple[str, ...], tmp_path: Path
) -> None:
    home = tmp_path / "edgellm-home"
    home.mkdir(exist_ok=True)
    (home / "prices.toml").write_text(
        f'[[price]]\nurl = "{remote[1]}"\nmodel = "big"\n'
        "input_usd_per_million = 0\noutput_usd_per_million = 1000000\n"
    )

    def cost(*arguments: str) -> float:
        result = edgellm("run", "m", "hello", "--json", *REMOTE_ONLY, *remote, *arguments)
        document = json.loads(result.out)
        return float(document["route"]["cost_usd"] / document["usage"]["completion_tokens"])

    assert cost() == 1.0
    assert cost("--remote-price", "0,0.5") == pytest.approx(0.5e-6, abs=2e-7)


def test_money_that_runs_out_is_said(edgellm: Run, remote: tuple[str, ...]) -> None:
    price = ("--remote-price", "0,1000000", "--budget", "600", *REMOTE_ONLY)
    result = edgellm("run", "m", "hello", *price, *remote)
    assert "nearly used" not in result.err
    result = edgellm("run", "m", "hello", "-n", "3", *remote, *REMOTE_ONLY, "--remote-price",
                     "0,1000000", "--budget", "7")  # fmt: skip
    assert result.code == 0
    assert "the remote budget is nearly used: $6.0000 of $7.0000 today" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--remote-price", "1"), "0.15,0.60"),
        (("--remote-price", "-1,1"), "0 or more dollars"),
        (("--budget", "-1"), "usd_day must be 0 or more"),
        (("--deny", "("), "is no regular expression"),
        (("--privacy", "nosy"), "pin-local"),
    ],
)
def test_a_wrong_limit_is_refused_before_a_model_is_loaded(
    edgellm: Run, remote: tuple[str, ...], arguments: tuple[str, ...], words: str
) -> None:
    result = edgellm("run", "m", "hello", *remote, *arguments)
    assert (result.code, result.model, len(result.err.splitlines())) == (2, None, 1)
    assert words in result.err


def test_decisions_are_logged_without_text_unless_asked(
    edgellm: Run, remote: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_REMOTE_KEY", KEY)
    edgellm("run", "m", "hello", *remote)
    assert edgellm("route", "log").out == ""
    edgellm("run", "m", "hello", *REMOTE_ONLY, *remote, "--remote-price", "0,1000000")
    edgellm("run", "m", MAIL, *REMOTE_ONLY, *remote)
    mail, hello = edgellm("route", "log").out.splitlines()
    assert "local" in mail
    assert "found 1 email" in mail
    assert "remote" in hello
    assert "$3.0000" in hello
    folder = tmp_path / "edgellm-home" / "router"
    assert folder.stat().st_mode
    for path in folder.iterdir():
        data = path.read_bytes()
        assert not any(text in data for text in (b"hello", b"ada@", KEY.encode()))
    edgellm("run", "m", "hello", "--log-text", *REMOTE_ONLY, *remote)
    row = json.loads(edgellm("route", "explain", "last", "--json").out)
    assert (row["prompt_text"], row["answer_text"]) == ("user: hello", "hello from afar")


def test_a_decision_is_explained_judged_and_replayed(edgellm: Run, remote: tuple[str, ...]) -> None:
    edgellm("run", "m", "hello", *REMOTE_ONLY, *remote)
    told = edgellm("route", "explain").out
    assert "policy      remote-only" in told
    assert "big         answered, " in told
    request_id = told.split()[0]
    assert "you said bad" in edgellm("route", "explain", request_id, "--bad").out
    assert edgellm("route", "explain", "zzzz").code == 4
    (line,) = edgellm("route", "replay", "--threshold", "0.5").out.splitlines()
    assert line.startswith("threshold 0.50: 0.0% of 0 sent")


def test_passages_leave_the_rest_of_a_document_here(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    facts = " ".join(f"The mill number {i} grinds rye in the valley." for i in range(300))
    text = f"My card is 4111 1111 1111 1111. {facts} The king lives in Ostheim.\nWhere is the king?"
    sent = ("--passages", "100", *REMOTE_ONLY, *remote)
    result = edgellm("run", "m", *sent, stdin=text.encode())
    assert "sent 24 of about " in result.err
    assert server.state()["received_bytes"] < 1000
    assert edgellm("run", "m", "x", "--passages", "3", *REMOTE_ONLY, *remote).code == 2
    # The card was not in what was to be sent; where it is, nothing leaves.
    result = edgellm("run", "m", *sent, stdin=text.replace("Where is the king", "My card").encode())
    assert "found 1 card" in result.err
