"""The scripted remote keeps its word: declared accuracy, counted bytes, billed tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from launch import Served, serve_scripted, write_answers

from edgellm.routing.remote import Price, RemoteBackend, RemoteOptions
from edgellm.stream import Delta, Message, Request, complete

# Half of the items are hard.
ITEMS = [(f"item {i}", f"answer number {i}", float(i % 2)) for i in range(40)]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_answers(tmp_path / "answers.jsonl", ITEMS)


@pytest.fixture
def served(key: Path) -> Iterator[Served]:
    with serve_scripted(key, "--accuracy", "0.9", "--rho", "1") as served:
        yield served


def backend(served: Served) -> RemoteBackend:
    can = frozenset({"prefill"})
    return RemoteBackend(
        RemoteOptions(served.url(), "big", "sk-1", price=Price(1, 2), capabilities=can)
    )


def test_accuracy_is_exact_and_errors_fall_on_what_is_hard(served: Served) -> None:
    remote = backend(served)
    wrong = [
        hard
        for prompt, answer, hard in ITEMS
        if complete(remote.stream(Request.user(prompt))).text != answer
    ]
    assert wrong == [1.0] * 4


def test_the_key_file_holds_no_prompt(key: Path) -> None:
    assert "item" not in key.read_text()


def test_bills_agree_to_the_token_and_every_byte_is_counted(served: Served) -> None:
    remote = backend(served)
    answers = [complete(remote.stream(Request.user(prompt))) for prompt, _, _ in ITEMS[:5]]
    counts = served.state()
    assert counts["requests"] == counts["connections"] == 5
    assert counts["prompt_tokens"] == sum(a.usage.prompt_tokens for a in answers)
    assert counts["completion_tokens"] == sum(a.usage.completion_tokens for a in answers)
    bodies = sum(len(remote.outgoing(Request.user(prompt)).body) for prompt, _, _ in ITEMS[:5])
    assert counts["received_bytes"] > bodies
    paid = (counts["prompt_tokens"] * 1 + counts["completion_tokens"] * 2) / 1e6
    assert sum(a.route.cost_usd for a in answers) == pytest.approx(paid)
    assert counts["unknown_prompts"] == 0
    assert set(counts["keys"]) == {"Bearer sk-1"}


def test_no_byte_is_received_where_nothing_was_asked(served: Served) -> None:
    remote = backend(served)
    remote.outgoing(Request.user("item 1"))
    remote.wait_s()
    remote.stream(Request.user("item 1")).close()
    counts = served.state()
    assert (counts["connections"], counts["received_bytes"]) == (0, 0)


def test_a_client_that_goes_away_is_noticed_and_billed_for_what_was_made(key: Path) -> None:
    with serve_scripted(key, "--accuracy", "1", "--token-ms", "100") as served:
        events = backend(served).stream(Request.user("item 0"))
        next(event for event in events if isinstance(event, Delta))
        events.close()
        served_counts = served.state()
        assert served_counts["open"] in (0, 1)
        while served_counts["open"]:
            served_counts = served.state()
        assert served_counts["cut_by_client"] == 1
        assert 1 <= served_counts["completion_tokens"] < 3


def test_it_stops_cuts_and_goes_on_as_asked(key: Path) -> None:
    with serve_scripted(key, "--accuracy", "1") as served:
        remote = backend(served)
        ask = Request.user("item 3")
        assert complete(remote.stream(ask)).text == "answer number 3"
        short = complete(remote.stream(replace(ask, max_tokens=2)))
        assert (short.text, short.finish_reason) == ("answer number", "length")
        assert complete(remote.stream(replace(ask, stop=(" number",)))).text == "answer"
        assert complete(remote.stream(ask, "answer")).text == " number 3"
        raw = complete(remote.stream(Request(prompt="item 3")))
        assert raw.text == "answer number 3"
        talk = (Message("user", "x"), Message("assistant", "y"), Message("user", "item 3"))
        assert complete(remote.stream(Request(talk))).text == "answer number 3"
