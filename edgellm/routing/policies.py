"""Who is asked first, who next, and why: facts in, decision out. Nothing happens here.

Order of authority: privacy pin > user pin > offline or breaker > budget > capability > stickiness
> score. A fact of a higher rank closes the remote whatever the lower ones say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgellm.errors import (
    BudgetExhausted,
    ContextFull,
    EdgellmError,
    PrivacyBlocked,
    Refused,
    Unreachable,
)
from edgellm.routing.gain import Bar, Worth
from edgellm.routing.options import Policy
from edgellm.routing.seams import Verdict

Side = Literal["local", "remote"]
Authority = Literal["privacy", "user", "offline", "budget", "capability", "stickiness", "score"]

REFUSALS: dict[Authority, type[EdgellmError]] = {
    "privacy": PrivacyBlocked,
    "offline": Unreachable,
    "budget": BudgetExhausted,
    "capability": ContextFull,
}


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """One remote, and what speaks against it: a reason, or None. `cost_usd` None: unknown."""

    name: str
    down: str | None = None
    over_budget: str | None = None
    incapable: str | None = None
    cost_usd: float | None = 0.0

    def obstacle(self) -> tuple[Authority, str] | None:
        """The obstacle of the highest authority."""
        if self.down is not None:
            return "offline", self.down
        if self.over_budget is not None:
            return "budget", self.over_budget
        return None if self.incapable is None else ("capability", self.incapable)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision rests on. `remotes` are in the order they would be asked.

    `p_before` is P(correct) before generation, None while nothing is known; `probed` says that the
    prefill was asked too. `has_pack`: there is a confidence pack. Seconds are what an answer took
    lately on each side.
    """

    policy: Policy
    verdict: Verdict = field(default_factory=Verdict)
    remotes: tuple[RemoteFacts, ...] = ()
    offline: bool = False
    sticky: bool = False
    has_pack: bool = True
    p_before: float | None = None
    probed: bool = False
    threshold: float = 0.7
    worth: Worth = field(default_factory=Worth)
    local_s: float = 1.0
    remote_s: float = 2.0
    first_side: Side = "local"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whom to ask in which order; the next side is asked where the one before fails.

    remotes   which of `Facts.remotes` may be asked
    bar       the local answer is judged against it as it grows and at its end; None: it is not
    probe     the prompt alone says nothing: prefill it, look at that, and decide again
    audit     the remote may be asked by chance, after the answer
    refusal   there is nobody to ask: raise this with the reason
    """

    sides: tuple[Side, ...]
    authority: Authority
    reason: str
    remotes: tuple[int, ...] = ()
    bar: Bar | None = None
    probe: bool = False
    race: bool = False
    audit: bool = False
    refusal: type[EdgellmError] | None = None


def decide(facts: Facts) -> Decision:
    """The decision for one request; the reason says which rule made it."""
    policy, verdict = facts.policy, facts.verdict
    if policy == "local-only":
        return Decision(("local",), "user", "policy local-only: nothing leaves this machine")
    if not verdict.may_leave:
        return _closed(policy, "privacy", verdict.why, pinned=verdict.kind == "pin-local")
    if facts.offline:
        return _closed(policy, "offline", "offline is set")
    if not facts.remotes:
        return _closed(policy, "offline", "no remote is set")
    obstacles = [remote.obstacle() for remote in facts.remotes]
    usable = tuple(index for index, obstacle in enumerate(obstacles) if obstacle is None)
    if not usable:
        # Of several remotes the preferred one says why.
        authority, why = obstacles[0] or ("offline", "")
        return _closed(policy, authority, why)
    if facts.sticky and policy in ("route", "cascade", "auto"):
        reason = f"{policy}: this conversation was escalated, so it goes on there"
        return Decision(("remote", "local"), "stickiness", reason, usable)
    return _scored(facts, usable)


def _closed(policy: Policy, authority: Authority, why: str, pinned: bool = False) -> Decision:
    """The remote may not be asked: the local model answers, unless only the remote may.

    A privacy pin outranks the user's wish for the remote, so it answers even then.
    """
    if policy == "remote-only" and not pinned:
        kind = REFUSALS.get(authority, Refused)
        advice = "choose another policy to answer here"
        return Decision((), authority, f"{why}; {advice}", refusal=kind)
    return Decision(("local",), authority, f"{policy}: {why}; stays here")


def _scored(facts: Facts, usable: tuple[int, ...]) -> Decision:
    """What the policy itself wants, now that nothing of a higher authority speaks."""
    name = facts.remotes[usable[0]].name
    match facts.policy:
        case "remote-only":
            return Decision(("remote",), "user", "remote-only", usable)
        case "prefer-remote":
            return Decision(("remote", "local"), "user", "prefer-remote", usable)
        case "prefer-local":
            reason = "prefer-local: this machine can answer"
            return Decision(("local", "remote"), "user", reason, usable)
        case "hedge":
            second: Side = "remote" if facts.first_side == "local" else "local"
            sides = (facts.first_side, second)
            return Decision(sides, "score", "hedge: the first token wins", usable, race=True)
        case "shadow":
            # Judged all the same: what is learnt is how P(correct) and the comparison go together.
            bar = Bar(facts.threshold) if facts.has_pack else None
            return Decision(("local",), "user", "shadow: answered here", usable, bar, audit=True)
        case "ask":
            bar = Bar(facts.threshold) if facts.has_pack else None
            reason = f"ask: answered here, {name} can be asked too"
            return Decision(("local",), "user", reason, usable, bar)
    return _judged(facts, usable)


def _judged(facts: Facts, usable: tuple[int, ...]) -> Decision:
    """`route`, `cascade` and `auto`, which trust a confidence pack."""
    policy, p_before = facts.policy, facts.p_before
    if not facts.has_pack:
        why = "no confidence pack for this model, so nothing is escalated unless it fails here"
        return Decision(("local", "remote"), "score", f"{policy}: {why}", usable)
    if p_before is None and not facts.probed and policy != "cascade":
        return Decision(("local", "remote"), "score", policy, usable, probe=True)
    if policy == "cascade":
        return Decision(("local", "remote"), "score", "cascade", usable, Bar(facts.threshold))
    return _before(facts, usable) if policy == "route" else _worthwhile(facts, usable)


def _before(facts: Facts, usable: tuple[int, ...]) -> Decision:
    """`route`: the answer is not judged any more once it has begun."""
    p_before, bar = facts.p_before, Bar(facts.threshold)
    if p_before is None:
        reason = "route: the pack has no opinion before an answer, so it stays here"
        return Decision(("local", "remote"), "score", reason, usable)
    if bar.escalates(p_before):
        reason = f"route: hard for this machine ({bar.words(p_before)})"
        return Decision(("remote", "local"), "score", reason, usable)
    reason = f"route: this machine can do it (p {p_before:.2f})"
    return Decision(("local", "remote"), "score", reason, usable)


def _worthwhile(facts: Facts, usable: tuple[int, ...]) -> Decision:
    """`auto`: whatever is expected to be worth most, before the answer and while it grows."""
    worth, p_before = facts.worth, facts.p_before
    # Unknown is not free: what has a price is asked before what has none.
    usable = tuple(sorted(usable, key=lambda index: facts.remotes[index].cost_usd is None))
    remote = facts.remotes[usable[0]]
    cost_usd = remote.cost_usd
    if cost_usd is None:
        reason = (
            f"auto: the price of {remote.name} is not known (--remote-price says it), so it is "
            "asked only if this machine fails"
        )
        return Decision(("local", "remote"), "score", reason, usable)
    bar = worth.bar(cost_usd, facts.remote_s)
    if p_before is not None and worth.skips_local(
        p_before, cost_usd, facts.local_s, facts.remote_s
    ):
        reason = f"auto: trying here does not pay (p {p_before:.2f} before)"
        return Decision(("remote", "local"), "score", reason, usable)
    return Decision(("local", "remote"), "score", "auto", usable, bar)
