"""What a call is reserved and booked with, and what is left out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_fakes import (
    QUESTION,
    FakeBudget,
    FakeCard,
    FakeGuard,
    FakeLedger,
    FakePack,
    FakeRemote,
    Voice,
    local,
    read,
    remote,
)

from edgellm.routing.errors import BrokenOff
from edgellm.routing.handoff import until_stop
from edgellm.routing.options import RouterOptions
from edgellm.routing.router import Router
from edgellm.routing.tokens import fewest_prompt_tokens, most_prompt_tokens, prompt_estimate
from edgellm.stream import Delta, Done, Event, Message, Request, Timings, Usage

FAR = RouterOptions("prefer-remote")
texts = st.text(max_size=40)


@given(st.lists(texts, min_size=1, max_size=4), texts, st.integers(1, 5))
def test_the_bound_is_one_for_every_estimate(said: list[str], prefix: str, attempts: int) -> None:
    for request in (
        Request(messages=tuple(Message("user", text) for text in said)),
        Request(prompt="".join(said) or "x"),
    ):
        most = most_prompt_tokens(request, prefix, attempts)
        assert most >= attempts * prompt_estimate(request, prefix)
        assert most >= fewest_prompt_tokens(request, prefix)


def test_requests_that_failed_before_the_answer_are_booked_with_it() -> None:
    budget = FakeBudget()
    there = remote(maybe_billed=2)
    read(Router(local(), [FakeRemote(there)], FAR, None, FakeGuard(), budget))
    (made,) = budget.made
    (usage,) = made.settled
    assert usage.prompt_tokens == 7 + 2 * prompt_estimate(QUESTION)


def test_a_broken_answer_counts_its_own_request_once() -> None:
    budget = FakeBudget()
    error = BrokenOff("gone")
    error.usage, error.maybe_billed = Usage(7, 2), 2
    there = remote(fails=error, fails_at=3, maybe_billed=2)
    read(Router(local(), [FakeRemote(there)], FAR, None, FakeGuard(), budget))
    (usage,) = budget.made[0].settled
    assert usage == Usage(7 + prompt_estimate(QUESTION), 2)


def test_every_attempt_that_may_be_billed_is_reserved() -> None:
    asked: list[int] = []

    class Noted(FakeBudget):
        def reserve(self, card, prompt_tokens, max_tokens):  # type: ignore[no-untyped-def]
            asked.append(prompt_tokens)
            return super().reserve(card, prompt_tokens, max_tokens)

    there = FakeRemote(remote(), FakeCard(attempts=3))
    read(Router(local(), [there], FAR, None, FakeGuard(), Noted()))
    assert asked == [most_prompt_tokens(QUESTION, attempts=3)]


def test_of_a_long_document_only_the_passages_are_sent_and_the_reason_says_so() -> None:
    facts = " ".join(f"The mill number {i} grinds rye in the valley." for i in range(300))
    text = f"{facts}\nThe king lives in Ostheim.\n{facts}\n\nWhere does the king live?"
    here, guard = local(), FakeGuard()
    options = RouterOptions("prefer-remote", passage_tokens=100)
    request = Request.user(text)
    router = Router(here, [FakeRemote(remote())], options, None, guard)
    shown = read(router, request)
    (sent,) = guard.sent
    content = sent.messages[-1].content
    assert "Ostheim" in content
    assert len(content) < 500
    assert router.outgoing(request).messages == sent.messages
    kept, whole = len(content) // 4, len(text) // 4
    assert shown.route.reason == (
        f"prefer-remote: big answered; sent {kept:,} of about {whole:,} tokens"
    )
    # In the next turn the document is an earlier message, and stays here as well.
    turns = (Message("user", text), Message("assistant", "Ostheim"), Message("user", "And who?"))
    read(router, Request(messages=turns))
    assert sum(len(message.content) for message in guard.sent[-1].messages) < 1000
    assert read(Router(here, [], "local-only"), request).text == "I am small"
    assert here.asked[-1][0] == request


def test_a_shadowed_answer_is_judged_and_its_signals_are_recorded() -> None:
    ledger = FakeLedger()
    options = RouterOptions("shadow", shadow_share=0.0)
    pack = FakePack(0.9)
    with Router(local(), [FakeRemote(remote())], options, pack, FakeGuard(), None, ledger) as r:
        assert read(r).route.reason == "shadow: answered here"
    (record,) = ledger.records
    assert record.p_after == 0.9
    assert record.signals["answer_tokens"] == 3
    assert record.signals["logprob_mean"] == pytest.approx(-0.1)


def pieces(*words: str) -> list[str]:
    def events():  # type: ignore[no-untyped-def]
        yield from (Delta(word) for word in words)
        yield Done("stop", Usage(1, 9), Timings(0.0, 0.0, 0.0, 0.0))

    found: list[Event] = list(until_stop(events(), "one two EN", ("END", "EN\n\n")))
    assert isinstance(found[-1], Done)
    return [event.text for event in found if isinstance(event, Delta)]


def test_a_stop_text_is_noticed_across_a_hand_off() -> None:
    assert pieces("D", " three") == []
    assert pieces("\n", "\n", "three") == []
    # What only began like one is said after all.
    assert pieces("\n", "three", " D") == ["\n", "three", " D"]
    assert pieces("joy", "D") == ["joy", "D"]
    assert pieces("\n") == ["\n"]


def test_a_continued_answer_ends_where_it_was_told_to() -> None:
    broken = BrokenOff("gone")
    there = remote(fails=broken, fails_at=3)
    here = Voice("small", ("unused",), onward=(" and", " on", " and on"))
    # The remote says "I am" and breaks off.
    request = Request(messages=QUESTION.messages, stop=("am and",))
    shown = read(Router(here, [FakeRemote(there)], FAR, None, FakeGuard()), request)
    assert shown.text == "I am"
    assert shown.done.finish_reason == "stop"
    assert here.open == 0
