"""The router over scripted sources: every policy in every situation a source can bring about."""

from __future__ import annotations

import pytest
from router_fakes import (
    QUESTION,
    FakeBudget,
    FakeCard,
    FakeGuard,
    FakeLedger,
    FakePack,
    FakePrice,
    FakeRemote,
    Voice,
    broken,
    local,
    read,
    remote,
    unreachable,
)

from edgellm.errors import (
    BudgetExhausted,
    ContextFull,
    EdgellmError,
    PrivacyBlocked,
    Unreachable,
    UsageError,
)
from edgellm.routing.options import POLICIES, RouterOptions
from edgellm.routing.router import Router
from edgellm.routing.seams import Verdict
from edgellm.stream import Delta, Done, Message, Request, complete

FULL = ContextFull("the prompt has 900 tokens and the context holds 512; shorten it")
SMALL, BIG = "I am small", "I am big"
UNSURE, SURE = 0.1, 0.95


class Setting:
    """A router, and everything behind it."""

    def __init__(
        self,
        policy: str,
        here: Voice | None = None,
        there: Voice | None = None,
        p: float = SURE,
        guard: FakeGuard | None = None,
        budget: FakeBudget | None = None,
        **options: object,
    ) -> None:
        self.here, self.there = here or local(), there or remote()
        self.guard, self.budget = guard or FakeGuard(), budget or FakeBudget()
        self.ledger, self.pack = FakeLedger(), FakePack(p, p)
        chosen = RouterOptions(policy, hedge_delay_ms=20, **options)  # type: ignore[arg-type]
        self.router = Router(
            self.here,
            [FakeRemote(self.there)],
            chosen,
            self.pack,
            self.guard,
            self.budget,
            self.ledger,
        )

    def check_books(self) -> None:
        """Every reservation came to exactly one end, and every request has one record."""
        assert [made.times for made in self.budget.made] == [1] * len(self.budget.made)
        assert len(self.ledger.records) == (self.router.options.policy != "local-only")
        assert self.here.open == self.there.open == 0


# policy, P(correct) → who answers, when nothing goes wrong, and whether the remote was asked.
FINE = [
    ("local-only", UNSURE, SMALL, 0),
    ("prefer-local", UNSURE, SMALL, 0),
    ("prefer-remote", SURE, BIG, 1),
    ("remote-only", SURE, BIG, 1),
    ("route", SURE, SMALL, 0),
    ("route", UNSURE, BIG, 1),
    ("cascade", SURE, SMALL, 0),
    ("cascade", UNSURE, BIG, 1),
    ("auto", SURE, SMALL, 0),
    ("auto", UNSURE, BIG, 1),
    ("hedge", UNSURE, SMALL, 0),
    ("ask", UNSURE, SMALL, 0),
]


@pytest.mark.parametrize(("policy", "p", "text", "sent"), FINE)
def test_when_all_is_well_the_policy_decides(policy: str, p: float, text: str, sent: int) -> None:
    setting = Setting(policy, p=p)
    shown = read(setting.router)
    assert shown.text == text
    assert len(setting.guard.sent) == sent
    assert shown.route.source == ("remote" if text == BIG else "local")
    assert shown.route.policy == policy
    assert shown.route.reason
    assert shown.route.cost_usd == (0.25 if sent else 0.0)
    assert shown.replaced == ()
    setting.check_books()


@pytest.mark.parametrize(
    ("policy", "p"),
    [
        ("prefer-remote", SURE),
        ("route", UNSURE),
        ("cascade", UNSURE),
        ("auto", UNSURE),
        ("hedge", SURE),
    ],
)
@pytest.mark.parametrize("fails", [unreachable(), EdgellmError("429")])
def test_a_remote_that_does_not_answer_leaves_the_local_answer(
    policy: str, p: float, fails: EdgellmError
) -> None:
    here = local(pause_s=0.05) if policy == "hedge" else local()
    setting = Setting(policy, here, remote(fails=fails), p=p)
    shown = read(setting.router)
    assert (shown.text, shown.route.source, shown.replaced) == (SMALL, "local", ())
    assert str(fails) in shown.route.reason
    assert shown.route.cost_usd == 0.0
    assert [made.refunds for made in setting.budget.made] == [1]
    setting.check_books()


def test_remote_only_says_why_there_is_no_answer() -> None:
    setting = Setting("remote-only", there=remote(fails=unreachable()))
    with pytest.raises(Unreachable, match="connection refused"):
        list(setting.router.stream(QUESTION))
    assert setting.here.asked == []
    setting.check_books()


@pytest.mark.parametrize(
    ("policy", "p"),
    [("prefer-remote", SURE), ("route", UNSURE), ("cascade", UNSURE), ("auto", UNSURE)],
)
def test_a_remote_that_breaks_off_is_continued_here_from_its_own_words(
    policy: str, p: float
) -> None:
    setting = Setting(policy, there=remote(fails=broken(), fails_at=3), p=p)
    shown = read(setting.router)
    assert shown.text == "I am" + "and so on"
    assert shown.replaced == ()
    request, prefix = setting.here.asked[-1]
    assert prefix == "I am"
    assert request.max_tokens == QUESTION.max_tokens - 2
    assert shown.route.source == "local"
    assert "broke off" in shown.route.reason
    assert "continued here" in shown.route.reason
    assert shown.done.usage.completion_tokens == 5
    # Its two tokens were made, so they are paid.
    (made,) = setting.budget.made
    assert [usage.completion_tokens for usage in made.settled] == [2]
    assert shown.route.cost_usd == 0.25
    setting.check_books()


def test_a_hedged_remote_that_breaks_off_is_continued_here() -> None:
    setting = Setting("hedge", local(pause_s=5.0), remote(fails=broken(), fails_at=2))
    setting.here.gone.clear()
    assert read_hedged_break(setting) == "Iand so on"
    setting.check_books()


def read_hedged_break(setting: Setting) -> str:
    # The loser's pause ends when it is asked to go on: a real one ends at its next token.
    text = ""
    for event in setting.router.stream(QUESTION):
        if isinstance(event, Delta):
            setting.here.gone.set()
            text += event.text
    return text


def test_remote_only_that_breaks_off_raises_after_its_words() -> None:
    setting = Setting("remote-only", there=remote(fails=broken(), fails_at=3))
    events = setting.router.stream(QUESTION)
    seen = [next(events), next(events), next(events)]
    assert [event.text for event in seen if isinstance(event, Delta)] == ["I", " am"]
    with pytest.raises(EdgellmError, match="broke off"):
        next(events)
    assert setting.here.asked == []
    setting.check_books()


def test_when_both_fail_the_reader_learns_why_the_answer_broke() -> None:
    here = local(onward=("x",), fails=FULL)
    setting = Setting("prefer-remote", here, remote(fails=broken(), fails_at=3))
    events = setting.router.stream(QUESTION)
    with pytest.raises(EdgellmError, match="big broke off"):
        list(events)
    setting.check_books()


@pytest.mark.parametrize("policy", ["prefer-local", "cascade", "route", "auto"])
@pytest.mark.parametrize("fails", [FULL, EdgellmError("the model is closed; load it again")])
def test_a_local_failure_brings_the_remote(policy: str, fails: EdgellmError) -> None:
    setting = Setting(policy, local(fails=fails))
    shown = read(setting.router)
    assert (shown.text, shown.route.source) == (BIG, "remote")
    assert str(fails) in shown.route.reason
    setting.check_books()


@pytest.mark.parametrize("policy", ["local-only", "shadow", "ask"])
def test_a_local_failure_is_final_where_only_the_local_model_answers(policy: str) -> None:
    setting = Setting(policy, local(fails=FULL), shadow_share=1.0)
    with pytest.raises(ContextFull):
        list(setting.router.stream(QUESTION))
    assert setting.guard.sent == []


def test_a_wrong_question_is_not_sent_to_anybody_else() -> None:
    setting = Setting("prefer-local", local(fails=UsageError("the prompt is empty")))
    with pytest.raises(UsageError, match="empty"):
        list(setting.router.stream(QUESTION))
    assert setting.guard.sent == []


def test_both_unable_raises_what_can_be_mended_here() -> None:
    setting = Setting("prefer-local", local(fails=FULL), remote(fails=unreachable()))
    with pytest.raises(ContextFull):
        list(setting.router.stream(QUESTION))
    setting.check_books()


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "local-only"])
@pytest.mark.parametrize("kind", ["pin-local", "block", "ask"])
def test_nothing_leaves_against_the_guards_verdict(policy: str, kind: str) -> None:
    guard = FakeGuard(Verdict(kind, "a card number was found"))  # type: ignore[arg-type]
    setting = Setting(policy, p=UNSURE, guard=guard, shadow_share=1.0)
    if policy == "remote-only" and kind != "pin-local":
        with pytest.raises(PrivacyBlocked, match="a card number"):
            list(setting.router.stream(QUESTION))
    else:
        shown = read(setting.router)
        assert shown.text == SMALL
        assert "a card number" in shown.route.reason
    setting.router.close()
    assert setting.guard.sent == []
    assert setting.budget.made == []


def test_local_only_does_not_even_ask_the_guard() -> None:
    setting = Setting("local-only")
    assert complete(setting.router.stream(QUESTION)).text == SMALL
    assert (setting.guard.judged, setting.guard.sent, setting.pack.seen) == (0, [], [])
    assert setting.here.asked == [(QUESTION, "")]


@pytest.mark.parametrize("policy", ["prefer-remote", "cascade", "auto", "hedge"])
def test_an_exhausted_budget_keeps_the_answer_here(policy: str) -> None:
    setting = Setting(policy, p=UNSURE, budget=FakeBudget(denial="0.50 USD of today are used up"))
    shown = read(setting.router)
    assert shown.text == SMALL
    assert "used up" in shown.route.reason
    assert setting.guard.sent == []


def test_a_budget_lost_to_another_process_keeps_the_answer_here() -> None:
    setting = Setting("cascade", p=UNSURE, budget=FakeBudget(refuses=True))
    shown = read(setting.router)
    assert shown.text == SMALL
    assert "used up" in shown.route.reason
    assert setting.guard.sent == []


def test_remote_only_over_budget_is_refused() -> None:
    setting = Setting("remote-only", budget=FakeBudget(denial="used up"))
    with pytest.raises(BudgetExhausted, match="used up"):
        list(setting.router.stream(QUESTION))
    (record,) = setting.ledger.records
    assert (record.route, record.attempts) == (None, ())
    assert "used up" in record.reason


def test_remotes_are_asked_by_tier_until_one_answers() -> None:
    cheap, dear = remote(fails=unreachable()), Voice("huge", ("huge",))
    guard = FakeGuard()
    remotes = [FakeRemote(dear, FakeCard("huge", tier=2)), FakeRemote(cheap, FakeCard("big", 1))]
    router = Router(local(), remotes, "prefer-remote", guard=guard)
    assert router.remotes == ("big", "huge")
    shown = read(router)
    assert shown.text == "huge"
    assert "big did not answer" in shown.route.reason


def test_within_a_tier_the_cheaper_remote_is_asked_first() -> None:
    cards = [
        FakeCard("unknown", price=None),
        FakeCard("dear", price=FakePrice(9.0)),
        FakeCard("cheap", price=FakePrice(1.0)),
        FakeCard("first", tier=-1, price=None),
    ]
    router = Router(local(), [FakeRemote(remote(), card) for card in cards], guard=FakeGuard())
    assert router.remotes == ("first", "cheap", "dear", "unknown")


def test_a_price_that_is_not_known_is_not_free() -> None:
    guard = FakeGuard()
    remotes = [FakeRemote(remote(), FakeCard(price=None))]
    shown = read(Router(local(), remotes, "auto", FakePack(UNSURE, UNSURE), guard))
    assert (shown.text, guard.sent) == (SMALL, [])
    assert "the price of big is not known" in shown.route.reason


def test_a_shadow_without_a_ledger_is_refused() -> None:
    with pytest.raises(UsageError, match="ledger"):
        Router(local(), [FakeRemote(remote())], "shadow", guard=FakeGuard())


def test_a_remote_that_rests_is_not_asked() -> None:
    guard = FakeGuard()
    router = Router(local(), [FakeRemote(remote(), wait_s=9.0)], "prefer-remote", guard=guard)
    shown = read(router)
    assert shown.text == SMALL
    assert "rests for 9 s" in shown.route.reason
    assert guard.sent == []


def test_a_prompt_too_long_for_the_remote_is_not_sent_there() -> None:
    guard = FakeGuard()
    router = Router(
        local(), [FakeRemote(remote(), FakeCard(context_tokens=10))], "prefer-remote", guard=guard
    )
    assert "takes 10" in read(router, Request.user("long " * 50)).route.reason
    assert guard.sent == []


def test_an_escalated_conversation_goes_on_there_for_so_many_turns() -> None:
    setting = Setting("cascade", p=UNSURE, sticky_turns=2)
    turns: tuple[Message, ...] = ()
    where = []
    for number in range(5):
        turns = (*turns, Message("user", f"question {number}"))
        # Only the first turn is hard.
        setting.pack._after = UNSURE if number == 0 else SURE
        shown = read(setting.router, Request(messages=turns))
        where.append((shown.route.source, "goes on there" in shown.route.reason))
        turns = (*turns, Message("assistant", shown.text))
    stuck, free = ("remote", True), ("local", False)
    assert where == [("remote", False), stuck, stuck, free, free]


def test_another_conversation_is_not_stuck() -> None:
    setting = Setting("cascade", p=UNSURE)
    read(setting.router)
    setting.pack._after = SURE
    assert read(setting.router, Request.user("another")).route.source == "local"


def test_another_policy_shares_what_was_learnt_and_leaves_the_first_as_it_was() -> None:
    setting = Setting("cascade", p=SURE)
    assert read(setting.router.with_policy("remote-only")).text == BIG
    assert read(setting.router).text == SMALL
    with pytest.raises(UsageError, match="unknown routing policy 'best'"):
        setting.router.with_policy("best")  # type: ignore[arg-type]


def test_a_router_stands_where_a_local_model_stands() -> None:
    inner = Setting("cascade", p=UNSURE)
    outer = Router(inner.router, [FakeRemote(Voice("huge", ("huge",)))], "prefer-local",
                   guard=FakeGuard())  # fmt: skip
    shown = read(outer)
    assert shown.text == BIG
    assert (shown.route.source, shown.route.policy, shown.route.cost_usd) == (
        "remote",
        "prefer-local",
        0.25,
    )
    assert "cascade: unsure here" in shown.route.reason


def test_an_answers_beginning_goes_to_whoever_answers() -> None:
    setting = Setting("cascade")
    assert complete(setting.router.stream(QUESTION, "Well,")).text == "and so on"
    assert setting.here.asked[-1][1] == "Well,"


def test_without_a_guard_of_its_own_a_router_has_the_one_that_keeps_private_data_here() -> None:
    router = Router(local(), [FakeRemote(remote())], "prefer-remote")
    shown = read(router, Request.user("Is 4111 1111 1111 1111 a card?"))
    assert (shown.text, shown.route.source) == (SMALL, "local")
    assert "found 1 card" in shown.route.reason


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "local-only"])
def test_a_policy_that_needs_a_remote_says_so(policy: str) -> None:
    with pytest.raises(UsageError, match="--remote URL"):
        Router(local(), policy=policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["route", "cascade", "auto"])
def test_without_a_pack_nothing_is_escalated_and_the_reason_says_so(policy: str) -> None:
    guard = FakeGuard()
    router = Router(local(), [FakeRemote(remote())], policy, guard=guard)  # type: ignore[arg-type]
    shown = read(router)
    assert (shown.text, guard.sent) == (SMALL, [])
    assert "no confidence pack" in shown.route.reason
    assert shown.route.p_correct is None


def test_closing_early_stops_the_source_pays_for_what_was_made_and_is_recorded() -> None:
    setting = Setting("prefer-remote")
    events = setting.router.stream(QUESTION)
    next(events)
    next(events)
    events.close()  # type: ignore[attr-defined]
    (made,) = setting.budget.made
    assert [usage.completion_tokens for usage in made.settled] == [1]
    (record,) = setting.ledger.records
    assert (record.text, record.route) == ("I", None)
    assert [attempt.outcome for attempt in record.attempts] == ["abandoned"]
    setting.check_books()


def test_the_record_tells_the_whole_story() -> None:
    setting = Setting("cascade", p=UNSURE)
    shown = read(setting.router)
    (record,) = setting.ledger.records
    assert record.request == QUESTION
    assert (record.policy, record.text, record.p_after) == ("cascade", BIG, UNSURE)
    assert record.route == shown.route
    assert [(a.source, a.outcome) for a in record.attempts] == [
        ("local", "abandoned"),
        ("big", "answered"),
    ]
    assert record.propensity == 1.0
    assert len(record.request_id) == 32


def test_logprobs_and_hidden_states_are_shown_only_to_who_asked() -> None:
    setting = Setting("cascade")
    events = list(setting.router.stream(QUESTION))
    assert setting.here.asked[-1][0].observe
    assert all(not event.logprobs for event in events if isinstance(event, Delta))
    assert isinstance(events[-1], Done)
    assert events[-1].hidden is None
    asked = Request(messages=QUESTION.messages, logprobs=0, observe=True)
    events = list(setting.router.stream(asked))
    assert all(event.logprobs for event in events if isinstance(event, Delta))
    assert isinstance(events[-1], Done)
    assert events[-1].hidden is not None
