"""One source follows another: unseen while held back, marked or continued after that."""

from __future__ import annotations

import pytest
from router_fakes import (
    QUESTION,
    FakeCard,
    FakeGuard,
    FakePack,
    FakeRemote,
    Voice,
    broken,
    read,
    remote,
    unreachable,
)

from edgellm.errors import ContextFull, EdgellmError
from edgellm.routing.handoff import MARK
from edgellm.routing.options import RouterOptions
from edgellm.routing.router import Router
from edgellm.routing.signals import Observed
from edgellm.stream import Delta, Done, Replace, Request, Start, complete

LONG = tuple(f"w{number} " for number in range(40))
PREFILL = frozenset({"prefill"})


def at_the_end(p: float) -> FakePack:
    """Sure while the answer goes on; at its end `p`."""
    return FakePack(lambda seen: 0.9 if seen.finish_reason is None else p)


def never_sure() -> FakePack:
    return FakePack(0.1)


def cascade(
    here: Voice, there: Voice, pack: FakePack, can: frozenset[str] = frozenset(), **options: object
) -> Router:
    chosen = RouterOptions("cascade", **options)  # type: ignore[arg-type]
    card = FakeCard(there.name, capabilities=can)
    return Router(here, [FakeRemote(there, card)], chosen, pack, FakeGuard())


def test_a_short_answer_is_judged_before_anybody_sees_it() -> None:
    here, there = Voice("small", ("wrong",)), remote()
    events = list(cascade(here, there, at_the_end(0.1)).stream(QUESTION))
    assert [type(event) for event in events] == [Start, Delta, Delta, Delta, Done]
    assert isinstance(events[0], Start)
    assert events[0].model == "big"


def test_a_sure_answer_appears_when_the_window_ends() -> None:
    here = Voice("small", LONG)
    events = cascade(here, remote(), at_the_end(0.9), hold_back_tokens=8).stream(QUESTION)
    assert isinstance(next(events), Start)
    assert here.said == 8
    assert [next(events) for _ in range(8)] == [Delta(word) for word in LONG[:8]]
    # From here on a word is shown when it is said.
    next(events)
    assert here.said == 9


def test_the_window_ends_by_time_too() -> None:
    here = Voice("small", LONG)
    router = cascade(here, remote(), at_the_end(0.9), hold_back_tokens=1000, hold_back_ms=0.0)
    events = router.stream(QUESTION)
    assert isinstance(next(events), Start)
    assert here.said == 1


def test_a_policy_that_cannot_change_its_mind_holds_nothing_back() -> None:
    here = Voice("small", LONG)
    router = Router(here, [FakeRemote(remote())], "prefer-local", guard=FakeGuard())
    events = router.stream(QUESTION)
    assert isinstance(next(events), Start)
    assert here.said == 1


def test_after_the_window_the_reader_is_told_that_the_text_is_void() -> None:
    router = cascade(Voice("small", LONG), remote(), at_the_end(0.1), hold_back_tokens=4)
    events = list(router.stream(QUESTION))
    replaced = [event for event in events if isinstance(event, Replace)]
    assert len(replaced) == 1
    assert "unsure here (p 0.10 below 0.70)" in replaced[0].reason
    assert complete(events).text == "I am big"
    assert sum(isinstance(event, Start) for event in events) == 1


def test_a_reader_without_replace_gets_a_mark_instead() -> None:
    router = cascade(
        Voice("small", LONG), remote(), at_the_end(0.1), hold_back_tokens=4, handoff="append"
    )
    shown = read(router)
    assert shown.replaced == ()
    assert shown.text == "".join(LONG) + MARK + "I am big"


def test_after_a_mark_only_the_new_answer_is_continued() -> None:
    here = Voice("small", LONG)
    there = remote(fails=broken(), fails_at=3)
    router = cascade(here, there, at_the_end(0.1), hold_back_tokens=4, handoff="append")
    assert read(router).text == "".join(LONG) + MARK + "I am" + "and so on"
    assert here.asked[-1][1] == "I am"


def test_a_doubtful_answer_is_given_up_early_and_unseen() -> None:
    here = Voice("small", LONG)
    router = cascade(here, remote(), never_sure(), check_tokens=4, abort_checks=2)
    shown = read(router)
    assert (shown.text, shown.replaced) == ("I am big", ())
    assert here.said == 8
    assert here.open == 0


def test_a_remote_with_prefill_goes_on_from_what_was_shown() -> None:
    doubts = FakePack(lambda seen: 0.9 if len(seen.tokens) < 16 else 0.1)
    here, there = Voice("small", LONG), Voice("big", ("unused",), onward=("and", " more"))
    looks = {"hold_back_tokens": 8, "check_tokens": 8, "abort_checks": 2}
    shown = read(cascade(here, there, doubts, PREFILL, **looks))
    # Two looks in a row, at 16 and at 24 tokens.
    said = "".join(LONG[:24])
    assert shown.text == said + "and more"
    assert shown.replaced == ()
    ((request, prefix),) = there.asked
    assert (prefix, request.max_tokens) == (said, QUESTION.max_tokens - 24)
    assert shown.done.usage.completion_tokens == 26
    assert here.open == 0


def test_a_whole_answer_held_to_be_wrong_is_not_gone_on_from() -> None:
    there = Voice("big", ("anew",), onward=("onward",))
    router = cascade(Voice("small", LONG), there, at_the_end(0.1), PREFILL, hold_back_tokens=4)
    shown = read(router)
    assert (shown.text, len(shown.replaced)) == ("anew", 1)


@pytest.mark.parametrize("pack", [never_sure(), at_the_end(0.1)])
@pytest.mark.parametrize("hold_back_tokens", [4, 1000])
def test_if_the_remote_fails_the_local_answer_goes_on_as_if_nothing_had_been(
    pack: FakePack, hold_back_tokens: int
) -> None:
    here = Voice("small", LONG)
    router = cascade(here, remote(fails=unreachable()), pack, hold_back_tokens=hold_back_tokens)
    shown = read(router)
    assert (shown.text, shown.replaced) == ("".join(LONG), ())
    # It was not asked twice: the same answer went on.
    assert len(here.asked) == 1
    assert "the local answer stays" in shown.route.reason
    assert shown.done.usage.completion_tokens == len(LONG)


def test_a_local_answer_that_breaks_is_voided_or_gone_on_from() -> None:
    fails = EdgellmError("out of memory")
    for can, text in ((frozenset[str](), "I am big"), (PREFILL, "w0 w1 and so on")):
        here = Voice("small", LONG, fails=fails, fails_at=3)
        router = Router(here, [FakeRemote(remote(), FakeCard(capabilities=can))],
                        "prefer-local", guard=FakeGuard())  # fmt: skip
        shown = read(router)
        assert shown.text == text
        assert "out of memory" in shown.route.reason


def test_the_pack_sees_the_answer_as_it_grows() -> None:
    pack = FakePack(0.9)
    router = cascade(Voice("small", LONG), remote(), pack, check_tokens=16)
    read(router, Request.user("why?", "Be brief."))
    assert [len(seen.tokens) for seen in pack.seen] == [16, 32, 40]
    assert [seen.finish_reason for seen in pack.seen] == [None, None, "stop"]
    last: Observed = pack.seen[-1]
    assert (last.prompt, last.prompt_tokens) == ("why?", 7)
    assert last.text == "".join(LONG)
    assert last.hidden is not None
    assert last.tokens[0].entropy == 0.5


def test_route_looks_at_the_prefill_where_the_prompt_says_nothing() -> None:
    here = Voice("small", LONG)
    pack = FakePack(before=lambda seen: 0.2 if seen.hidden else None)
    router = Router(here, [FakeRemote(remote())], "route", pack, FakeGuard())
    shown = read(router)
    assert (shown.text, shown.replaced) == ("I am big", ())
    assert here.said == 1
    ((request, _),) = here.asked
    assert (request.max_tokens, request.observe) == (1, True)
    assert [len(seen.tokens) for seen in pack.seen] == [0, 1]
    assert shown.route.reason == "route: hard for this machine (p 0.20 below 0.70); big answered"


def test_route_with_a_hopeful_prefill_stays_and_shows_each_word_at_once() -> None:
    here = Voice("small", LONG)
    pack = FakePack(before=lambda seen: 0.9 if seen.hidden else None)
    events = Router(here, [FakeRemote(remote())], "route", pack, FakeGuard()).stream(QUESTION)
    assert isinstance(next(events), Start)
    # One for the look at the prefill, one to be shown.
    assert here.said == 2
    *_, done = events
    assert isinstance(done, Done)
    assert done.route.p_correct == 0.9
    assert done.route.reason == "route: this machine can do it (p 0.90)"


def test_a_prefill_that_fails_leaves_the_answer_to_the_remote() -> None:
    here = Voice("small", LONG, fails=ContextFull("900 tokens"))
    pack = FakePack(before=lambda seen: None)
    router = Router(here, [FakeRemote(remote())], "route", pack, FakeGuard())
    assert read(router).text == "I am big"


def test_ask_shows_the_local_answer_at_once_and_offers_the_remote_when_unsure() -> None:
    here, guard = Voice("small", LONG), FakeGuard()
    router = Router(here, [FakeRemote(remote())], "ask", at_the_end(0.1), guard)
    events = router.stream(QUESTION)
    assert isinstance(next(events), Start)
    assert here.said == 1
    *_, done = events
    assert isinstance(done, Done)
    assert done.route.source == "local"
    assert done.route.reason == "ask: unsure here (p 0.10 below 0.70); big can be asked"
    assert guard.sent == []
    assert complete(router.with_policy("remote-only").stream(QUESTION)).text == "I am big"


def test_ask_offers_nothing_when_sure() -> None:
    router = Router(Voice("small", LONG), [FakeRemote(remote())], "ask", FakePack(0.9), FakeGuard())
    assert read(router).route.reason == "ask: confident here"


def test_the_first_token_counts_from_the_question_to_the_reader() -> None:
    # Held back and thrown away: what the reader waited for is the remote's first word.
    here, there = Voice("small", LONG, pause_s=0.02), remote(pause_s=0.03)
    shown = read(cascade(here, there, at_the_end(0.1), hold_back_tokens=1000))
    assert shown.done.timings.first_token_ms >= 50
