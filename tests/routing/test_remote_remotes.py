"""Several remotes: who is asked, in which order, and why the others are not."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.errors import UsageError
from edgellm.routing.remote import Connectivity, Need, Price, RemoteOptions, Remotes
from edgellm.stream import Request

NEED = Need(prompt_tokens=1000, max_tokens=100)


def option(model: str, **more: Any) -> RemoteOptions:
    return RemoteOptions(f"https://{model}.example.com/v1", model, **more)


def names(remotes: Remotes, need: Need = NEED) -> list[str]:
    return [backend.name for backend in remotes.rank(need).candidates]


def test_lower_tiers_come_first_then_the_cheaper_then_the_unknown() -> None:
    remotes = Remotes(
        [
            option("unknown"),
            option("dear", price=Price(10, 10)),
            # Dear answers, cheap prompts: it wins where the prompt is long.
            option("long", price=Price(1, 50)),
            option("cheap", price=Price(5, 5)),
            option("first", tier=-1),
        ]
    )
    assert names(remotes) == ["first", "cheap", "long", "dear", "unknown"]
    assert names(remotes, Need(10_000, 100))[:3] == ["first", "long", "cheap"]


def test_what_cannot_be_done_is_left_out_with_a_reason() -> None:
    remotes = Remotes(
        [
            option("short", context_tokens=1099),
            option("exact", context_tokens=1100),
            option("able", capabilities=frozenset({"json", "prefill"})),
        ]
    )
    assert names(remotes) == ["exact", "able"]
    found = remotes.rank(Need(1000, 100, frozenset({"json"})))
    assert [backend.name for backend in found.candidates] == ["able"]
    assert found.reasons == (
        "short at short.example.com is not said to do json",
        "exact at exact.example.com is not said to do json",
    )
    (reason,) = remotes.rank(NEED).reasons
    assert reason == "short at short.example.com holds 1099 tokens, 1100 may be needed"


def test_a_request_says_what_it_needs() -> None:
    request = Request.user("word " * 300)
    need = Need.of(request, "and so", ["tools"])
    assert need.capabilities == {"tools", "prefill"}
    assert need.prompt_tokens >= 300
    assert need.max_tokens == request.max_tokens
    assert Need.of(Request(prompt="Once"), "upon").capabilities == frozenset()
    with pytest.raises(UsageError, match="unknown capability 'magic'"):
        Need(1, 1, frozenset({"magic"}))


def test_a_remote_that_failed_too_often_is_left_out_until_later() -> None:
    remotes = Remotes([option("a"), option("b")])
    remotes.all[0].breaker.hold(60)
    found = remotes.rank(NEED)
    assert [backend.name for backend in found.candidates] == ["b"]
    assert found.reasons == ("a at a.example.com is left alone for 60 s after failures",)


def test_a_dead_network_leaves_only_this_machine() -> None:
    network = Connectivity(down_after=1)
    remotes = Remotes([option("far"), RemoteOptions("http://127.0.0.1:8080", "near")], network)
    assert names(remotes) == ["far", "near"]
    network.connected(False)
    assert names(remotes) == ["near"]
