"""The router: a Backend over a local model and remotes that says who answered, why, at what cost.

    request ── facts ── decide ──▶ Decision ── Course ──▶ events ── Record ──▶ ledger

The default policy is local-only: then nobody but the local model is as much as looked at.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from edgellm.errors import UsageError
from edgellm.routing.asked import Asked
from edgellm.routing.course import Course
from edgellm.routing.options import Policy, RouterOptions
from edgellm.routing.pace import Pace
from edgellm.routing.policies import Decision, Facts, RemoteFacts, decide
from edgellm.routing.privacy.guard import Guard as PrivacyGuard
from edgellm.routing.risk import kept
from edgellm.routing.seams import (
    Budget,
    Card,
    Confidence,
    Continuing,
    Guard,
    Ledger,
    Record,
    Remote,
    Verdict,
)
from edgellm.routing.shadow import Shadows
from edgellm.routing.signals import Observed
from edgellm.routing.sources import Parts
from edgellm.routing.sticky import Stickiness
from edgellm.routing.tokens import fewest_prompt_tokens, most_prompt_tokens, prompt_estimate
from edgellm.routing.watch import last_user_turn, observe
from edgellm.stream import Event, Request, Usage

if TYPE_CHECKING:
    from edgellm.routing.remote.options import RemoteOptions

# The answer's length that a price is guessed with; the budget reserves for max_tokens instead.
LIKELY_ANSWER_TOKENS = 256


class Router:
    """Answers here or elsewhere. A Router is a Backend, so one may stand where `local` stands.

    remotes: descriptions (`edgellm.Remote`), or what can be asked already; lower tiers come first,
    the cheaper ones within a tier.
    policy: a policy's name, or RouterOptions where more is to be said.
    confidence: a pack bound to the local model (`edgellm.confidence_pack`); without one `route`,
    `cascade` and `auto` escalate nothing.
    guard: what alone may ask a remote; None: the privacy guard as it comes, which keeps requests
    with personal data here.
    """

    def __init__(
        self,
        local: Continuing,
        remotes: Sequence[Remote | RemoteOptions] = (),
        policy: Policy | RouterOptions = "local-only",
        confidence: Confidence | None = None,
        guard: Guard | None = None,
        budget: Budget | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        if remotes and guard is None:
            guard = PrivacyGuard()
        in_order = tuple(sorted(_opened(remotes), key=_rank))
        self.options = policy if isinstance(policy, RouterOptions) else RouterOptions(policy)
        self._parts = Parts(local, in_order, confidence, guard, budget, ledger)
        self._kept = kept(self.options, confidence)
        self._pace = Pace()
        self._sticky = Stickiness()
        self._chance = random.Random(self.options.seed)
        self._shadows = Shadows()
        _check(self.options, self._parts)

    def with_policy(self, policy: Policy) -> Router:
        """The same router under another policy, for one request or for all to come.

        Both share what they have learnt. UsageError on an unknown name, or without a remote.
        """
        other = copy(self)
        other.options = replace(self.options, policy=policy)
        _check(other.options, self._parts)
        return other

    @property
    def certificate(self) -> str | None:
        """What vouches for the risk that was asked for, in one line."""
        return self._kept.line

    @property
    def remotes(self) -> tuple[str, ...]:
        """The models that may be asked, in that order."""
        return tuple(remote.options.model for remote in self._parts.remotes)

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]:
        """The answer as events; `Done.route` says who gave it and why.

        Refusals come before `Start`: PrivacyBlocked, BudgetExhausted, Unreachable, ContextFull and
        whatever the local model raises, where nobody else may be asked. `prefix` is the answer's
        beginning, which is not repeated.
        """
        if self.options.policy == "local-only":
            local = self._parts.local
            yield from local.stream(request, prefix) if prefix else local.stream(request)
            return
        asked = Asked.of(request, prefix, self.options.passage_tokens)
        facts = self._facts(asked)
        decision = decide(facts)
        if decision.probe:
            facts = replace(facts, p_before=self._probed(asked), probed=True)
            decision = decide(facts)
        if decision.refusal is not None:
            if self._parts.ledger is not None:
                blank = Record(request, self.options.policy, decision.reason, facts.p_before)
                self._parts.ledger.record(blank)
            raise decision.refusal(decision.reason)
        yield from self._answer(asked, facts, decision)

    def outgoing(self, request: Request) -> Request:
        """What of a request a remote would be asked, before the guard looks at it."""
        return Asked.of(request, "", self.options.passage_tokens).sent

    def _facts(self, asked: Asked) -> Facts:
        """What the decision rests on. Nothing is sent, generated or reserved for it."""
        parts, options, request = self._parts, self.options, asked.request
        guard = parts.guard
        verdict = guard.judge(asked.sent, request) if guard is not None else Verdict()
        p_before = None
        if parts.confidence is not None and options.policy in ("route", "auto"):
            prompt, tokens = last_user_turn(request), prompt_estimate(request)
            blank = Observed(prompt, tokens, (), None, None, "")
            p_before = parts.confidence.before(blank)
        return Facts(
            policy=options.policy,
            verdict=verdict,
            remotes=tuple(self._remote_facts(remote, asked) for remote in parts.remotes),
            offline=options.offline,
            sticky=self._sticky.left(request) > 0,
            has_pack=parts.confidence is not None,
            p_before=p_before,
            threshold=self._kept.threshold,
            worth=options.worth,
            local_s=self._pace.seconds("local"),
            remote_s=self._pace.seconds("remote"),
            first_side=self._pace.first_side(),
        )

    def _probed(self, asked: Asked) -> float | None:
        """P(correct) from the prefill, None when there is no opinion or no answer here."""
        parts = self._parts
        observed = observe(parts.local, asked.request, asked.prefix)
        if parts.confidence is None or observed is None:
            return None
        return parts.confidence.before(observed)

    def _remote_facts(self, remote: Remote, asked: Asked) -> RemoteFacts:
        card, budget, request = remote.options, self._parts.budget, asked.sent
        most = most_prompt_tokens(request, asked.prefix, card.attempts)
        likely = Usage(prompt_estimate(request), min(request.max_tokens, LIKELY_ANSWER_TOKENS))
        return RemoteFacts(
            name=card.model,
            down=_down(card, remote.wait_s()),
            over_budget=budget.denial(card, most, request.max_tokens) if budget else None,
            incapable=_incapable(card, request, asked.prefix),
            cost_usd=None if card.price is None else card.price.cost_usd(likely),
        )

    def _answer(
        self, asked: Asked, facts: Facts, decision: Decision
    ) -> Generator[Event, None, None]:
        delay_s = self._pace.delay_s(decision.sides[0], self.options)
        p_before, request = facts.p_before, asked.request
        course = Course(self._parts, self.options, decision, asked, delay_s, p_before)
        try:
            with closing(course.run()) as events:
                yield from events
        finally:
            for attempt in course.sources.attempts:
                self._pace.note(attempt)
            self._stick(request, course, decision)
            self._record(request, course, decision, p_before)

    def _stick(self, request: Request, course: Course, decision: Decision) -> None:
        """Remembers an escalated conversation; a turn that went on by that uses one turn up."""
        if course.route is None or course.route.source == "local":
            return
        if decision.authority == "stickiness":
            self._sticky.note(request, self._sticky.left(request) - 1)
        elif decision.authority == "score" and not decision.race:
            self._sticky.note(request, self.options.sticky_turns)

    def _record(
        self, request: Request, course: Course, decision: Decision, p_before: float | None
    ) -> None:
        """Writes the one record of this request, or has it written when its shadow has ended."""
        ledger, share = self._parts.ledger, self.options.shadow_share
        if ledger is None:
            return
        propensity = share if decision.audit else float(course.sources.asked_remote)
        blank = Record(request, self.options.policy, decision.reason, p_before, propensity)
        if decision.audit and course.route is not None and self._chance.random() < share:
            ask = course.sources.any_remote
            self._shadows.start(ask, lambda said: course.record(blank, said), ledger)
            return
        ledger.record(course.record(blank))

    def close(self) -> None:
        """Waits for shadow calls under way. The local model belongs to whoever made it."""
        self._shadows.wait()

    def __enter__(self) -> Router:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _opened(remotes: Sequence[Remote | RemoteOptions]) -> list[Remote]:
    """Clients for the remotes that are only described. They share one view of the network."""
    if not remotes:
        return []
    # What HTTP needs is not loaded for a router that stays on this machine.
    from edgellm.routing.remote import Connectivity, RemoteBackend
    from edgellm.routing.remote.options import RemoteOptions

    network = Connectivity()
    return [
        RemoteBackend(remote, None, network) if isinstance(remote, RemoteOptions) else remote
        for remote in remotes
    ]


def _rank(remote: Remote) -> tuple[int, float]:
    """Lower tiers first, then the cheaper; an unknown price comes last."""
    card, typical = remote.options, Usage(1000, LIKELY_ANSWER_TOKENS)
    return card.tier, math.inf if card.price is None else card.price.cost_usd(typical)


def _check(options: RouterOptions, parts: Parts) -> None:
    policy = options.policy
    if policy != "local-only" and not parts.remotes:
        raise UsageError(f"policy {policy} needs a remote: --remote URL --remote-model NAME")
    if policy == "shadow" and parts.ledger is None:
        raise UsageError("policy shadow needs a ledger, without which nothing would be learnt")


def _down(card: Card, wait_s: float) -> str | None:
    return f"{card.model} failed lately and rests for {wait_s:.0f} s" if wait_s > 0 else None


def _incapable(card: Card, request: Request, prefix: str) -> str | None:
    """Why a remote cannot answer this request, None when it can."""
    if prefix and "prefill" not in card.capabilities:
        return f"{card.model} cannot go on from given text"
    tokens, context = fewest_prompt_tokens(request, prefix), card.context_tokens
    if context is not None and tokens >= context:
        return f"the prompt has about {tokens} tokens and {card.model} takes {context}"
    return None
