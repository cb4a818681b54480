"""Two sources at once, and shadow calls: threads that end, sockets that close, one record each."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from router_fakes import (
    QUESTION,
    FakeBudget,
    FakeGuard,
    FakeLedger,
    FakeRemote,
    Voice,
    local,
    read,
    remote,
    unreachable,
    until,
)

from edgellm.errors import EdgellmError
from edgellm.routing.options import RouterOptions
from edgellm.routing.pace import ENOUGH, Pace
from edgellm.routing.router import Router
from edgellm.routing.seams import Attempt
from edgellm.stream import Event, Request, complete

# Longer than any test: whoever sleeps so long is woken by being closed.
FOREVER_S = 60.0


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("edgellm-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert until(lambda: not threads()), threads()


def hedge(here: Voice, there: Voice, delay_ms: float = 20.0, **parts: object) -> Router:
    options = RouterOptions("hedge", hedge_delay_ms=delay_ms)
    guard = parts.pop("guard", FakeGuard())
    return Router(here, [FakeRemote(there)], options, guard=guard, **parts)  # type: ignore[arg-type]


def test_a_first_side_in_time_is_alone() -> None:
    guard = FakeGuard()
    shown = read(hedge(local(), remote(), FOREVER_S * 1e3, guard=guard))
    assert shown.text == "I am small"
    assert "local was first" in shown.route.reason
    assert guard.sent == []


def test_a_late_first_side_loses_to_the_other() -> None:
    here = local(pause_s=0.3)
    shown = read(hedge(here, remote()))
    assert (shown.text, shown.route.source) == ("I am big", "remote")
    assert "remote was first" in shown.route.reason
    # It was stopped before its second word, and can be asked again.
    assert here.said <= 1
    assert here.open == 0


def test_the_losing_remote_is_hung_up_while_it_is_silent() -> None:
    guard, budget = FakeGuard(), FakeBudget()
    there = remote(pause_s=FOREVER_S)
    router = hedge(local(pause_s=0.1), there, guard=guard, budget=budget)
    shown = read(router)
    assert shown.text == "I am small"
    (stream,) = guard.streams
    assert stream.closed
    assert until(lambda: there.open == 0)
    (made,) = budget.made
    assert until(lambda: made.times == 1)


def test_a_first_side_that_fails_does_not_wait_for_the_delay() -> None:
    here = local(fails=EdgellmError("closed"))
    shown = read(hedge(here, remote(), FOREVER_S * 1e3))
    assert shown.text == "I am big"
    assert "the other failed (closed)" in shown.route.reason


def test_when_both_fail_the_first_failure_is_raised() -> None:
    router = hedge(local(fails=EdgellmError("closed")), remote(fails=unreachable()))
    with pytest.raises(EdgellmError, match="closed"):
        list(router.stream(QUESTION))


def test_a_bug_in_a_thread_is_raised_where_the_answer_is_read() -> None:
    class Buggy:
        def stream(self, request: Request, prefix: str = "") -> Iterator[Event]:
            raise ZeroDivisionError("a bug of ours")

    options = RouterOptions("hedge", hedge_delay_ms=FOREVER_S * 1e3)
    router = Router(Buggy(), [FakeRemote(remote())], options, guard=FakeGuard())
    with pytest.raises(ZeroDivisionError):
        list(router.stream(QUESTION))


def test_closing_the_answer_ends_both_sides() -> None:
    here = Voice("small", tuple("abcdefgh"))
    there = remote(pause_s=FOREVER_S)
    guard = FakeGuard()
    events = hedge(here, there, 0.0, guard=guard).stream(QUESTION)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert here.open == 0
    assert until(lambda: there.open == 0)


def test_the_delay_is_learnt_from_what_the_first_token_took() -> None:
    options = RouterOptions("hedge", hedge_quantile=0.9, hedge_delay_ms=500)
    pace = Pace()
    assert pace.delay_s("local", options) == 0.5
    for number in range(1, 11):
        attempt = Attempt("local", False, "answered", first_token_ms=number * 10, total_ms=1000)
        pace.note(attempt)
    assert pace.delay_s("local", options) == pytest.approx(0.1)
    assert pace.seconds("local") == 1.0


def test_the_side_that_is_faster_in_the_median_goes_first() -> None:
    pace = Pace()
    for _ in range(ENOUGH):
        assert pace.first_side() == "local"
        pace.note(Attempt("local", False, "answered", first_token_ms=900))
        pace.note(Attempt("big", True, "answered", first_token_ms=200))
    assert pace.first_side() == "remote"


def shadow(here: Voice, there: Voice, ledger: FakeLedger | None, share: float = 1.0) -> Router:
    options = RouterOptions("shadow", shadow_share=share, seed=3)
    return Router(here, [FakeRemote(there)], options, guard=FakeGuard(), ledger=ledger)


def test_a_shadow_call_comes_after_the_answer_and_into_the_same_record() -> None:
    ledger, there = FakeLedger(), remote(pause_s=0.1)
    with shadow(local(), there, ledger) as router:
        assert read(router).text == "I am small"
        assert ledger.records == []
    (record,) = ledger.records
    assert (record.text, record.shadow_text, record.propensity) == ("I am small", "I am big", 1.0)
    assert [attempt.source for attempt in record.attempts] == ["local", "big"]


def test_a_failed_shadow_is_nobodys_trouble() -> None:
    ledger = FakeLedger()
    with shadow(local(), remote(fails=unreachable()), ledger) as router:
        assert read(router).text == "I am small"
    (record,) = ledger.records
    assert record.shadow_text is None
    assert record.attempts[1].outcome == "failed"


def test_the_share_of_shadow_calls_is_seeded_and_its_propensity_recorded() -> None:
    runs = []
    for _ in range(2):
        ledger = FakeLedger()
        with shadow(local(), remote(), ledger, share=0.3) as router:
            for number in range(60):
                complete(router.stream(Request.user(f"question {number}")))
        asked = {r.request.messages[0].content for r in ledger.records if r.shadow_text}
        assert len(ledger.records) == 60
        assert {record.propensity for record in ledger.records} == {0.3}
        runs.append(asked)
    assert runs[0] == runs[1]
    assert 5 <= len(runs[0]) <= 35


def test_an_answer_that_was_closed_has_no_shadow() -> None:
    ledger, guard = FakeLedger(), FakeGuard()
    options = RouterOptions("shadow", shadow_share=1.0)
    with Router(local(), [FakeRemote(remote())], options, guard=guard, ledger=ledger) as router:
        events = router.stream(QUESTION)
        next(events)
        events.close()  # type: ignore[attr-defined]
    assert guard.sent == []
    assert len(ledger.records) == 1
