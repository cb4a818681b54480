"""What holds for every policy, pack, failure and window: hypothesis looks for a counter-example."""

from __future__ import annotations

from hypothesis import given, settings
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
    broken,
)

from edgellm.errors import EdgellmError
from edgellm.routing.options import POLICIES, RouterOptions
from edgellm.routing.router import Router
from edgellm.routing.seams import Verdict
from edgellm.stream import Delta, Done, Replace, Start

# Threads make `hedge` slow to explore; its own tests cover it.
UNTHREADED = [name for name in POLICIES if name not in ("hedge", "shadow")]
probabilities = st.floats(0, 1)


@st.composite
def voices(draw: st.DrawFn, name: str) -> Voice:
    words = tuple(f"{name}{number} " for number in range(draw(st.integers(0, 12))))
    onward = tuple(f"{name}+{number} " for number in range(draw(st.integers(0, 3))))
    fails = draw(st.sampled_from([None, broken(), EdgellmError("no")]))
    return Voice(name, words, onward, fails, draw(st.integers(0, 12)) if fails else 0)


@st.composite
def options(draw: st.DrawFn) -> RouterOptions:
    return RouterOptions(
        policy=draw(st.sampled_from(UNTHREADED)),  # type: ignore[arg-type]
        threshold=draw(probabilities),
        hold_back_tokens=draw(st.integers(0, 16)),
        handoff=draw(st.sampled_from(["prefill", "replace", "append"])),  # type: ignore[arg-type]
        check_tokens=draw(st.integers(1, 5)),
        abort_checks=draw(st.integers(0, 3)),
        abort_margin=draw(probabilities),
    )


@settings(max_examples=200, deadline=None)
@given(
    here=voices("h"),
    there=voices("t"),
    chosen=options(),
    p=st.lists(probabilities, min_size=1, max_size=12),
    before=st.none() | probabilities,
    verdict=st.sampled_from(["allow", "mask", "ask", "pin-local", "block"]),
    can=st.sampled_from([frozenset(), frozenset({"prefill"})]),
    denial=st.sampled_from([None, "used up"]),
    pulled=st.integers(0, 30),
)
def test_the_invariants_hold(
    here: Voice,
    there: Voice,
    chosen: RouterOptions,
    p: list[float],
    before: float | None,
    verdict: str,
    can: frozenset[str],
    denial: str | None,
    pulled: int,
) -> None:
    pack = FakePack(lambda seen: p[len(seen.tokens) % len(p)], before)
    guard, budget, ledger = FakeGuard(Verdict(verdict, "found")), FakeBudget(denial), FakeLedger()  # type: ignore[arg-type]
    remotes = [FakeRemote(there, FakeCard("big", capabilities=can))]
    router = Router(here, remotes, chosen, pack, guard, budget, ledger)
    events, text, replaced = [], "", 0
    stream = router.stream(QUESTION)
    try:
        for _, event in zip(range(pulled), stream, strict=False):
            events.append(event)
            match event:
                case Delta():
                    text += event.text
                case Replace():
                    text, replaced = "", replaced + 1
    except EdgellmError:
        pass
    finally:
        stream.close()  # type: ignore[attr-defined]

    # Start first and once, Done last and once.
    assert [isinstance(event, Start) for event in events] == [n == 0 for n in range(len(events))]
    assert not any(isinstance(event, Done) for event in events[:-1])
    # Nobody is left working.
    assert here.open == there.open == 0
    # Nothing leaves under local-only, against a verdict, or without money.
    stays = chosen.policy in ("local-only", "ask")
    if stays or verdict in ("ask", "pin-local", "block") or denial:
        assert guard.sent == []
        assert there.asked == []
    # Billed once for each call, recorded once for each request.
    assert len(budget.made) == len(guard.sent)
    assert all(made.times == 1 for made in budget.made)
    assert len(ledger.records) == (chosen.policy != "local-only" and pulled > 0)
    # The text is that of the source that is named, in one piece or with its seam where it was cut.
    if events and isinstance(events[-1], Done):
        route = events[-1].route
        assert all(record.text == text for record in ledger.records)
        assert route.cost_usd == 0.25 * sum(len(made.settled) for made in budget.made)
        whole = {"local": "".join(here.words), "remote": "".join(there.words)}
        handed_over = [prefix for _, prefix in (*here.asked, *there.asked) if prefix]
        if not handed_over and chosen.handoff != "append":
            assert text == whole[route.source]
        for prefix in handed_over:
            assert prefix in text
