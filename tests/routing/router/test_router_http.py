"""The router over real HTTP: a server in another process that misbehaves in every known way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch import Served, serve_faults
from misbehave import ANSWER, FAULTS
from router_fakes import QUESTION, FakeBudget, FakeLedger, local

from edgellm.errors import EdgellmError
from edgellm.routing.options import Policy, RouterOptions
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.remote import Limits, RemoteOptions, Retry
from edgellm.routing.router import Router
from edgellm.routing.seams import Continuing
from edgellm.stream import Delta, Done, Event, Message, Replace, Request, Sampling, complete

WHOLE = "".join(ANSWER)
LIMITS = Limits(connect_s=0.3, first_token_s=0.3, idle_s=0.3, total_s=1.0)
# What a remote may say before it breaks off; the local voice goes on with "and so on".
ONWARD = "and so on"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serve_faults() as served:
        yield served


def options(url: str) -> RemoteOptions:
    return RemoteOptions(url, "big", limits=LIMITS, retry=Retry(2, 0.0, 0.0))


def router(
    here: Continuing, url: str, policy: Policy | RouterOptions, budget: FakeBudget | None = None
) -> Router:
    ledger = FakeLedger()
    return Router(here, [options(url)], policy, None, Guard(PrivacyOptions("off")), budget, ledger)


def play(events: Iterator[Event]) -> tuple[str, Done]:
    events = list(events)
    assert not any(isinstance(event, Replace) for event in events)
    text = "".join(event.text for event in events if isinstance(event, Delta))
    assert isinstance(events[-1], Done)
    return text, events[-1]


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_ends_in_a_whole_answer(server: Served, fault: str) -> None:
    budget = FakeBudget()
    here = local()
    text, done = play(router(here, server.url(fault), "prefer-remote", budget).stream(QUESTION))
    if done.route.source == "remote":
        assert here.asked == []
        assert text
    elif text == "I am small":
        assert "big did not answer" in done.route.reason
    else:
        # What was shown stays, and the local model went on from exactly that.
        assert text.endswith(ONWARD)
        assert here.asked[0][1] == text.removesuffix(ONWARD) != ""
        assert "broke off" in done.route.reason
    (made,) = budget.made
    assert made.times == 1


@pytest.mark.parametrize("port", ["refusing", "hanging", "silent"])
def test_a_port_that_does_not_answer_leaves_it_to_the_local_model(
    server: Served, port: str
) -> None:
    text, done = play(router(local(), server.url(port=port), "prefer-remote").stream(QUESTION))
    assert (text, done.route.source) == ("I am small", "local")


@pytest.mark.parametrize("fault", ["stall", "cut", "reset", "drip", "error-event-late"])
def test_remote_only_keeps_its_word_and_says_why_the_answer_is_cut(
    server: Served, fault: str
) -> None:
    here = local()
    with pytest.raises(EdgellmError):
        list(router(here, server.url(fault), "remote-only").stream(QUESTION))
    assert here.asked == []


def test_an_open_breaker_is_known_before_anything_is_sent(server: Served) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    routed = router(local(), url, "prefer-remote")
    reasons = [play(routed.stream(QUESTION))[1].route.reason for _ in range(12)]
    assert "did not answer" in reasons[0]
    assert "rests for" in reasons[-1]


def test_the_loser_of_a_hedge_loses_its_socket_while_it_is_silent(server: Served) -> None:
    long = RemoteOptions(server.url("silent"), "big", limits=Limits(first_token_s=60))
    chosen = RouterOptions("hedge", hedge_delay_ms=0)
    routed = Router(local(pause_s=0.3), [long], chosen, None, Guard(PrivacyOptions("off")))
    before = server.state().get("silent", {}).get("requests", 0)
    text, done = play(routed.stream(QUESTION))
    assert (text, done.route.reason) == (
        "I am small",
        "hedge: the first token wins; local was first",
    )
    assert server.wait_for("silent", "open", 0)["requests"] == before + 1


def test_a_hedge_takes_the_remote_when_the_local_model_is_late(server: Served) -> None:
    here = local(pause_s=0.5)
    chosen = RouterOptions("hedge", hedge_delay_ms=10)
    text, done = play(router(here, server.url("ok"), chosen).stream(QUESTION))
    assert (text, done.route.source) == (WHOLE, "remote")
    assert here.open == 0


def test_closing_an_answer_closes_the_socket(server: Served) -> None:
    events = router(local(), server.url("slow"), "prefer-remote").stream(QUESTION)
    next(events)
    next(events)
    events.close()  # type: ignore[attr-defined]
    server.wait_for("slow", "open", 0)


def test_under_local_only_not_a_byte_reaches_the_server() -> None:
    with serve_faults() as fresh:
        routed = router(local(), fresh.url("ok"), "local-only")
        for number in range(50):
            complete(routed.stream(Request.user(f"question {number}")))
        assert fresh.state().get("ok", {}).get("bytes", 0) == 0


@pytest.mark.weights
def test_the_real_model_goes_on_from_a_broken_stream(server: Served, smollm2_bundle: Path) -> None:
    from edgellm.runtime.local import load

    request = Request(
        messages=(Message("user", "Count from one to ten in words."),),
        max_tokens=24,
        sampling=Sampling(),
    )
    with load(str(smollm2_bundle)) as model:
        text, done = play(router(model, server.url("cut"), "prefer-remote").stream(request))
    # The same words as a fresh model says that is asked by hand to go on from there.
    rest = Request(messages=request.messages, max_tokens=21, sampling=Sampling())
    with load(str(smollm2_bundle)) as model:
        wanted = complete(model.stream(rest, "one two three"))
    assert text == "one two three" + wanted.text
    assert text.startswith("one two three four five")
    # Whether it ends behind "ten" is a near tie, which the order of a sum decides.
    assert (done.route.source, done.finish_reason) == ("local", wanted.finish_reason)
    assert "continued here" in done.route.reason
