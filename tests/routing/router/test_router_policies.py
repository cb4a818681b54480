"""The decision as a table: facts in, sides and a reason out, by the order of authority."""

from __future__ import annotations

import itertools

import pytest

from edgellm.errors import (
    BudgetExhausted,
    ContextFull,
    EdgellmError,
    PrivacyBlocked,
    Unreachable,
    UsageError,
)
from edgellm.routing.gain import Bar, Worth
from edgellm.routing.options import POLICIES, RouterOptions
from edgellm.routing.policies import Facts, RemoteFacts, decide
from edgellm.routing.seams import Verdict

OK = RemoteFacts("big")
DOWN = RemoteFacts("big", down="big rests for 9 s")
POOR = RemoteFacts("big", over_budget="the day's 0.50 USD are used up")
SHORT = RemoteFacts("big", incapable="big takes 4096 tokens")
HERE, THERE = ("local",), ("remote",)
HERE_FIRST, THERE_FIRST = ("local", "remote"), ("remote", "local")


def facts(policy: str, **changes: object) -> Facts:
    return Facts(**{"policy": policy, "remotes": (OK,), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "sides", "authority", "words"),
    [
        (facts("local-only"), HERE, "user", "nothing leaves this machine"),
        (facts("prefer-local"), HERE_FIRST, "user", "this machine can answer"),
        (facts("prefer-remote"), THERE_FIRST, "user", "prefer-remote"),
        (facts("remote-only"), THERE, "user", "remote-only"),
        (facts("shadow"), HERE, "user", "answered here"),
        (facts("ask"), HERE, "user", "big can be asked too"),
        (facts("hedge"), HERE_FIRST, "score", "the first token wins"),
        (facts("hedge", first_side="remote"), THERE_FIRST, "score", "the first token wins"),
        (facts("cascade"), HERE_FIRST, "score", "cascade"),
        (facts("cascade", has_pack=False), HERE_FIRST, "score", "no confidence pack"),
        (facts("route", p_before=0.2), THERE_FIRST, "score", "p 0.20 below 0.70"),
        (facts("route", p_before=0.8), HERE_FIRST, "score", "p 0.80"),
        (facts("route"), HERE_FIRST, "score", "route"),
        (facts("route", probed=True), HERE_FIRST, "score", "no opinion"),
        (facts("auto", p_before=0.9), HERE_FIRST, "score", "auto"),
        (facts("auto", p_before=0.001, local_s=60.0), THERE_FIRST, "score", "does not pay"),
        (facts("cascade", sticky=True), THERE_FIRST, "stickiness", "was escalated"),
        (facts("prefer-local", sticky=True), HERE_FIRST, "user", "this machine"),
        (facts("cascade", remotes=(DOWN,)), HERE, "offline", "rests for 9 s"),
        (facts("cascade", remotes=(POOR,)), HERE, "budget", "used up"),
        (facts("cascade", remotes=(SHORT,)), HERE, "capability", "4096"),
        (facts("cascade", remotes=()), HERE, "offline", "no remote"),
        (facts("prefer-remote", offline=True), HERE, "offline", "offline is set"),
        (facts("hedge", remotes=(DOWN,)), HERE, "offline", "rests"),
    ],
)
def test_the_table(given: Facts, sides: tuple[str, ...], authority: str, words: str) -> None:
    made = decide(given)
    assert (made.sides, made.authority) == (sides, authority)
    assert words in made.reason
    assert made.refusal is None


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"verdict": Verdict("block", "a card number")}, PrivacyBlocked),
        ({"verdict": Verdict("ask", "an e-mail address")}, PrivacyBlocked),
        ({"offline": True}, Unreachable),
        ({"remotes": ()}, Unreachable),
        ({"remotes": (DOWN,)}, Unreachable),
        ({"remotes": (POOR,)}, BudgetExhausted),
        ({"remotes": (SHORT,)}, ContextFull),
    ],
)
def test_remote_only_refuses_where_the_remote_is_closed(
    changes: dict[str, object], refusal: type[EdgellmError]
) -> None:
    made = decide(facts("remote-only", **changes))
    assert (made.sides, made.refusal) == ((), refusal)


def test_a_privacy_pin_outranks_the_wish_for_the_remote() -> None:
    made = decide(facts("remote-only", verdict=Verdict("pin-local", "a card number was found")))
    assert (made.sides, made.authority, made.refusal) == (HERE, "privacy", None)


# Each rank with a fact that closes the remote, highest first.
RANKS: tuple[tuple[str, dict[str, object]], ...] = (
    ("privacy", {"verdict": Verdict("pin-local", "found")}),
    ("offline", {"offline": True}),
    ("budget", {"over_budget": "spent"}),
    ("capability", {"incapable": "short"}),
    ("stickiness", {"sticky": True}),
)


@pytest.mark.parametrize(("high", "low"), list(itertools.combinations(RANKS, 2)))
def test_of_two_facts_the_one_of_higher_authority_decides(
    high: tuple[str, dict[str, object]], low: tuple[str, dict[str, object]]
) -> None:
    said = high[1] | low[1]
    of_remote = {name: said.pop(name) for name in ("over_budget", "incapable") if name in said}
    remote = RemoteFacts("big", **of_remote)  # type: ignore[arg-type]
    assert decide(facts("cascade", remotes=(remote,), **said)).authority == high[0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["pin-local", "ask", "block"])
def test_no_policy_asks_a_remote_against_a_verdict(policy: str, kind: str) -> None:
    made = decide(facts(policy, verdict=Verdict(kind, "found"), sticky=True, p_before=0.0))  # type: ignore[arg-type]
    assert "remote" not in made.sides
    assert not made.race
    assert not made.audit
    assert made.remotes == ()


def test_only_what_is_decided_before_the_answer_probes_and_only_once() -> None:
    probing = [policy for policy in POLICIES if decide(facts(policy)).probe]
    assert probing == ["route", "auto"]
    assert not any(decide(facts(policy, probed=True)).probe for policy in POLICIES)
    assert not any(decide(facts(policy, p_before=0.5)).probe for policy in POLICIES)
    assert not any(decide(facts(policy, has_pack=False)).probe for policy in POLICIES)


def test_remotes_that_cannot_are_left_out_and_the_rest_keeps_its_order() -> None:
    made = decide(facts("prefer-remote", remotes=(DOWN, RemoteFacts("b"), SHORT, RemoteFacts("d"))))
    assert made.remotes == (1, 3)


def test_the_bar_of_auto_falls_as_the_remote_grows_dearer() -> None:
    bars = [
        decide(facts("auto", probed=True, remotes=(RemoteFacts("big", cost_usd=usd),))).bar
        for usd in (0.0, 0.002, 0.005, 1.0)
    ]
    highs = [bar.high for bar in bars if bar is not None]
    assert highs == sorted(highs, reverse=True)
    assert highs[0] > 0.9
    assert highs[-1] == 0.0


def test_the_bar_of_auto_is_where_gain_and_price_are_equal() -> None:
    worth = Worth(value_usd=0.02, usd_per_second=0.001)
    bar = worth.bar(cost_usd=0.003, remote_s=2.0)
    assert worth.gain(bar.high) * 0.02 == pytest.approx(0.003 + 0.002)
    assert bar.escalates(bar.high - 0.01)
    assert not bar.escalates(bar.high)


def test_hopeless_answers_are_not_escalated() -> None:
    worth = Worth(hopeless_below=0.1)
    assert worth.gain(0.05) == 0.0
    bar = worth.bar(0.0, 0.0)
    assert not bar.escalates(0.05)
    assert bar.escalates(0.2)


def test_a_remote_that_never_helps_is_never_asked() -> None:
    worth = Worth(remote_right_if_local_wrong=0.0, remote_right_if_local_right=1.0)
    assert worth.bar(0.0, 0.0) == Bar(0.0)
    assert not worth.skips_local(0.0, 0.0, local_s=100.0, remote_s=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "cascde"},
        {"handoff": "jump"},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"hold_back_tokens": -1},
        {"hold_back_ms": float("nan")},
        {"check_tokens": 0},
        {"hedge_delay_ms": float("inf")},
        {"shadow_share": 2.0},
    ],
)
def test_wrong_options_are_refused_where_they_are_born(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).split("_")[0]):
        RouterOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"value_usd": 0}, {"usd_per_second": -1}, {"hopeless_below": 1.1}]
)
def test_a_wrong_worth_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Worth(**wrong)


def test_auto_asks_what_has_a_price_before_what_has_none() -> None:
    unknown, priced = RemoteFacts("secret", cost_usd=None), RemoteFacts("big", cost_usd=1e-6)
    made = decide(facts("auto", p_before=0.5, remotes=(unknown, priced)))
    assert (made.remotes, made.bar is not None) == ((1, 0), True)
    made = decide(facts("auto", p_before=0.5, remotes=(unknown,)))
    assert (made.sides, made.bar) == (HERE_FIRST, None)
    assert "the price of secret is not known (--remote-price says it)" in made.reason
