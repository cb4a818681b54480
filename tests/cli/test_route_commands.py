"""`edgellm route preview`, `budget` and `drift` over the real command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

# importmode=importlib leaves that folder out of the path.
sys.path.append(str(Path(__file__).parents[1] / "routing" / "servers"))

from launch import Served, serve_scripted, write_answers

from edgellm.cli.routed import database_path
from edgellm.routing.budget import Budget, BudgetOptions
from edgellm.routing.confidence.certify import certify
from edgellm.routing.database import Database
from edgellm.routing.drift import careful
from edgellm.routing.ledger import Ledger
from edgellm.routing.options import RouterOptions
from edgellm.routing.seams import Record
from edgellm.stream import Request, Route

Run = Callable[..., Any]
MAIL = "write to ada@example.org"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    rows = [("hello", "hello from afar", 0.5)]
    with serve_scripted(write_answers(tmp_path / "key.jsonl", rows), "--accuracy", "1") as served:
        yield served


@pytest.fixture
def remote(server: Served) -> tuple[str, ...]:
    return ("--remote", server.url(), "--remote-model", "big")


def test_a_preview_shows_the_body_and_sends_nothing(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    result = edgellm("route", "preview", "hello", "-s", "Be terse.", "-t", "0.5", *remote)
    body = json.loads(result.out)
    assert [m["content"] for m in body["messages"]] == ["Be terse.", "hello"]
    assert (body["model"], body["temperature"]) == ("big", 0.5)
    assert result.err.splitlines()[0] == "allow"
    assert server.state()["connections"] == 0


@pytest.mark.parametrize(
    ("mode", "verdict", "sent"),
    [
        ("pin-local", "pin-local: found 1 email", None),
        ("block", "block: found 1 email", None),
        ("mask", "mask: found 1 email", "write to [EMAIL_1]"),
        ("ask", "ask: found 1 email", MAIL),
        ("off", "allow", MAIL),
    ],
)
def test_a_preview_says_what_was_found_and_what_becomes_of_it(
    edgellm: Run, remote: tuple[str, ...], mode: str, verdict: str, sent: str | None
) -> None:
    result = edgellm("route", "preview", *remote, "--privacy", mode, stdin=MAIL.encode())
    assert result.err.splitlines()[0] == verdict
    if sent is None:
        assert result.out == ""
    else:
        assert json.loads(result.out)["messages"][0]["content"] == sent
    assert "  email       ada@example.org" in result.err


def test_the_preview_is_what_run_sends_byte_by_byte(
    edgellm: Run, server: Served, remote: tuple[str, ...]
) -> None:
    result = edgellm("route", "preview", "hello", "-t", "0.2", "--top-p", "0.9", *remote)
    edgellm("run", "m", "hello", "--route", "remote-only", *remote)
    # What is beside the body is the head of the request.
    head = server.state()["received_bytes"] - len(result.out.encode().rstrip(b"\n"))
    edgellm("run", "m", "hello again", "--route", "remote-only", *remote)
    longer = edgellm("route", "preview", "hello again", "-t", "0.2", "--top-p", "0.9", *remote)
    both = server.state()["received_bytes"]
    assert both == 2 * head + len(result.out.strip()) + len(longer.out.strip())


def test_a_preview_needs_a_remote_and_a_text(edgellm: Run, remote: tuple[str, ...]) -> None:
    for arguments in (("hello",), remote):
        result = edgellm("route", "preview", *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1)


def test_the_budget_is_shown_with_and_without_caps(edgellm: Run, remote: tuple[str, ...]) -> None:
    assert edgellm("route", "budget").out.splitlines() == [
        "$0.0000 today, no cap", "$0.0000 this month, no cap", "0 tokens today, no cap",
    ]  # fmt: skip
    price = ("--remote-price", "0,1000000")
    edgellm("run", "m", "hello", "--route", "remote-only", *remote, *price)
    # A process that died in the middle of a call leaves what it had set aside.
    card = SimpleNamespace(model="big", price=None)
    budget = Budget(Database(database_path()), BudgetOptions(), "dead")
    budget.reserve(card, 60, 40)  # type: ignore[arg-type]
    shown = edgellm("route", "budget", "--budget", "10", "--budget-tokens", "1000")
    day, month, tokens = shown.out.splitlines()
    assert day == "$3.0000 of $10.0000 today"
    assert month == "$3.0000 this month, no cap"
    assert tokens.endswith("of 1000 tokens today, 100 tokens of it reserved")
    document = json.loads(edgellm("route", "budget", "--json").out)
    assert [row["limit"] for row in document] == [None, None, None]


class Pack:
    """Graded answers that are right with the probability they claim."""

    about = SimpleNamespace(weights_sha256="a" * 64)
    random = np.random.default_rng(0)
    kept_scores = random.random(2000)
    kept_correct = random.random(2000) < kept_scores**0.2

    def certify(self, risk: float, confidence: float = 0.95) -> Any:
        return certify(self.kept_scores, self.kept_correct, risk, confidence)


def log(scores: Any, pack: str = "a" * 64) -> Ledger:
    ledger = Ledger(Database(database_path()), "here", pack=pack)
    for score in scores:
        route = Route("local", "cascade", "cascade: confident here", float(score))
        ledger.record(
            Record(Request.user("?"), "cascade", "", p_after=float(score), route=route, text="x")
        )
    return ledger


def test_drift_is_told_and_makes_the_next_session_stricter(
    edgellm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgellm.cli.routing import drift

    monkeypatch.setattr(drift, "opened", lambda model, offline: None)
    monkeypatch.setattr(drift, "pack_of", lambda manifest, path: Pack())
    options, pack = RouterOptions("cascade", risk=0.2), Pack()
    result = edgellm("route", "drift")
    assert result.code == 0
    assert "50 decisions are needed" in result.out
    ledger = log(np.random.default_rng(1).random(100))
    # What another pack judged says nothing about this one.
    log(np.zeros(100), "b" * 64)
    assert edgellm("route", "drift", "--risk", "0.2").code == 0
    assert careful(options, pack, ledger) == (options, None)  # type: ignore[arg-type]
    log(np.random.default_rng(2).random(300) ** 4)
    result = edgellm("route", "drift", "--risk", "0.2")
    assert result.code == 3
    assert "alarm       the last 400 prompts are unlike the graded ones" in result.out
    assert json.loads(edgellm("route", "drift", "--json").out)["looked_at"] == 400
    stricter, notice = careful(options, pack, ledger)  # type: ignore[arg-type]
    assert stricter.risk == 0.1
    assert notice is not None
    assert "kept to risk 10.0%" in notice
    assert careful(RouterOptions("cascade"), pack, ledger)[1] is None  # type: ignore[arg-type]
    assert pack.certify(0.1).threshold > pack.certify(0.2).threshold
