"""One request on its way: sources are asked as decided, and each failure has a next step.

A source that takes over is asked for its first word before the one it follows is given up, so a
remote that cannot be reached leaves the local answer as it was.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Literal

from edgellm.errors import EdgellmError, UsageError
from edgellm.routing.asked import Asked
from edgellm.routing.handoff import Ended, Relay, until_stop
from edgellm.routing.hedge import Race, Source
from edgellm.routing.options import RouterOptions
from edgellm.routing.policies import Decision, Side
from edgellm.routing.seams import Record
from edgellm.routing.signals import telling
from edgellm.routing.sources import Events, Parts, Sources, first_word, nobody
from edgellm.routing.watch import Watch
from edgellm.stream import Done, Event, Request, Route, Usage

# A cancelled local answer ends within a token or a chunk of its prompt, and the next request needs
# its cache; nobody waits for a remote.
LOCAL_CLOSE_S = 60.0
REMOTE_CLOSE_S = 0.2


class Course:
    """How one request is answered. `run` gives the events; afterwards the rest tells the story."""

    def __init__(
        self,
        parts: Parts,
        options: RouterOptions,
        decision: Decision,
        asked: Asked,
        delay_s: float,
        p_before: float | None,
    ) -> None:
        self.relay = Relay(options, asked.request.logprobs is not None)
        self.route: Route | None = None
        self.watch = self._make_watch(parts, decision, asked.request)
        self.sources = Sources(parts, decision, asked)
        self._options = options
        self._decision = decision
        self._asked = asked
        self._delay_s = delay_s
        self._started_s = time.perf_counter()
        self._reason = decision.reason
        self._notes: list[str] = []
        self._p_before = p_before
        # Tokens of the text that another source went on from.
        self._tokens_before = 0

    def _make_watch(self, parts: Parts, decision: Decision, request: Request) -> Watch | None:
        if parts.confidence is None or decision.bar is None:
            return None
        abort = "remote" in decision.sides
        return Watch(parts.confidence, request, decision.bar, abort)

    def run(self) -> Events:
        """The answer. A failure before the first event is raised, also that of the last source."""
        if self._decision.race:
            yield from self._race()
        elif self._decision.sides[0] == "local":
            yield from self._local_first()
        else:
            yield from self._remote_first()

    def record(self, blank: Record, shadow_text: str | None = None) -> Record:
        """`blank` with what came of the request; a request that was never answered has a reason."""
        return replace(
            blank,
            reason=self.route.reason if self.route else self._told(blank.reason),
            signals=telling(self.watch.seen) if self.watch and self.watch.seen else {},
            p_after=self.watch.p_correct if self.watch else None,
            text=self.relay.visible,
            route=self.route,
            attempts=tuple(self.sources.attempts),
            shadow_text=shadow_text,
        )

    def _local_first(self) -> Events:
        may_escalate = "remote" in self._decision.sides
        with closing(self.sources.local(observe=self.watch is not None)) as local:
            try:
                hold_back = may_escalate and self.watch is not None
                ended = yield from self.relay.play(local, self.watch, hold_back)
            except EdgellmError as error:
                # A wrong question is wrong everywhere: nobody is paid for finding out.
                if isinstance(error, UsageError):
                    raise
                yield from self._after_local_failure(error)
                return
            if ended.unsure and may_escalate:
                yield from self._escalate(local, ended)
                return
            yield from self._finish(ended, "local")

    def _remote_first(self) -> Events:
        error = yield from self._ask_remotes(None)
        if error is None:
            return
        if "local" not in self._decision.sides:
            raise error
        self._notes.append("answered here")
        with closing(self.sources.local()) as local:
            ended = yield from self.relay.play(local)
        yield from self._finish(ended, "local")

    def _escalate(self, local: Events, ended: Ended) -> Events:
        """A remote answers instead, if one can; else the local answer goes on as if unwatched."""
        if self.watch is not None:
            self._reason = self.watch.reason(self._options.policy)
        # A whole answer that is held to be wrong is nothing to go on from.
        error = yield from self._ask_remotes(local, onward=ended.done is None)
        if error is None:
            return
        self._notes.append("the local answer stays")
        if ended.done is None:
            ended = yield from self.relay.play(local)
        yield from self._finish(ended, "local")

    def _after_local_failure(self, error: EdgellmError) -> Events:
        if "remote" not in self._decision.sides:
            raise error
        self._reason = f"{self._options.policy}: failed here ({error})"
        # Both failed: what is wrong here can be mended here.
        if (yield from self._ask_remotes(None, onward=True)) is not None:
            raise error

    def _ask_remotes(
        self, before: Events | None, onward: bool = False
    ) -> Generator[Event, None, EdgellmError | None]:
        """The answer of the first remote that says a word; the last error when none does.

        `before` is closed then. onward: a remote that can do so goes on from what was shown.
        """
        error: EdgellmError | None = None
        stop = self._asked.request.stop
        for remote in self.sources.remotes:
            card, relay = remote.options, self.relay
            can_continue = "prefill" in card.capabilities and self._options.handoff == "prefill"
            goes_on = onward and relay.shown and can_continue
            said, tokens = (relay.text, relay.tokens) if goes_on else ("", 0)
            with closing(self.sources.remote(remote, said, tokens)) as events:
                try:
                    opening = first_word(events)
                except EdgellmError as failure:
                    self._notes.append(f"{card.model} did not answer ({failure})")
                    error = failure
                    continue
                if before is not None:
                    before.close()
                if goes_on:
                    self._tokens_before = tokens
                    yield from relay.flush()
                    following = until_stop(_chained(opening, events), said, stop)
                else:
                    yield from relay.void(self._reason)
                    following = _chained(opening, events)
                yield from self._play_remote(following, card.model)
                return None
        return error or nobody()

    def _play_remote(self, events: Iterator[Event], name: str) -> Events:
        try:
            ended = yield from self.relay.play(events)
        except EdgellmError as error:
            yield from self._go_on_here(error, name)
            return
        self._notes.append(f"{name} answered")
        yield from self._finish(ended, "remote")

    def _go_on_here(self, error: EdgellmError, name: str) -> Events:
        """The local model goes on from the words of a remote that broke off."""
        if "local" not in self._decision.sides:
            raise error
        yield from self.relay.flush()
        self._notes.append(f"{name} broke off ({error}); continued here")
        self._tokens_before = self.relay.tokens
        text, tokens = self.relay.text, self._tokens_before
        try:
            with closing(self.sources.local(said=text, tokens=tokens)) as local:
                following = until_stop(local, text, self._asked.request.stop)
                ended = yield from self.relay.play(following)
        except EdgellmError:
            # Why the answer is incomplete, rather than why it could not be completed.
            raise error from None
        yield from self._finish(ended, "local")

    def _race(self) -> Events:
        sides = self._decision.sides
        both: dict[Side, Source] = {
            "local": Source(self.sources.local, LOCAL_CLOSE_S),
            "remote": Source(self.sources.any_remote, REMOTE_CLOSE_S, self.sources.hang_up),
        }
        race = Race([both[side] for side in sides], self._delay_s)
        try:
            with closing(race.run()) as events:
                ended = yield from self.relay.play(events)
        except EdgellmError as error:
            if race.winner is None:
                raise
            if sides[race.winner] == "remote":
                yield from self._go_on_here(error, "the remote")
            else:
                yield from self._after_local_failure(error)
            return
        winner = sides[race.winner or 0]
        self._notes.append(f"{winner} was first")
        self._notes += [f"the other failed ({failure})" for failure in race.failures]
        yield from self._finish(ended, winner)

    def _finish(self, ended: Ended, side: Side) -> Events:
        """The end of the answer: what was held back, and Done with the whole story."""
        done, relay = ended.done, self.relay
        if done is None:
            raise EdgellmError("the answer ended without Done; its backend is broken")
        yield from relay.flush()
        usage, timings = done.usage, done.timings
        if self._tokens_before:
            prompt = relay.prompt_tokens or usage.prompt_tokens
            completion = self._tokens_before + usage.completion_tokens
            usage = Usage(prompt, completion, usage.cached_tokens)
        if relay.first_shown_s:
            first_ms = (relay.first_shown_s - self._started_s) * 1e3
            timings = replace(timings, first_token_ms=first_ms)
        self.route = self._story(done, side)
        hidden = done.hidden if self._asked.request.observe else None
        yield replace(done, usage=usage, timings=timings, route=self.route, hidden=hidden)

    def _told(self, reason: str) -> str:
        """The reason with what came of it; one that is the policy alone is its heading."""
        notes = "; ".join(self._notes)
        return f"{reason}{';' if ':' in reason else ':'} {notes}" if notes else reason

    def _story(self, done: Done, side: Side) -> Route:
        inner, watch, left_out = done.route, self.watch, self._asked.note
        reason, p_correct = self._reason, None
        if side == "local":
            p_correct = self._p_before if self._p_before is not None else inner.p_correct
            if watch is not None:
                p_correct = watch.p_correct if watch.p_correct is not None else p_correct
                told = self._notes or self._decision.audit
                reason = reason if told else watch.reason(self._options.policy)
                if watch.unsure and self._options.policy == "ask":
                    self._notes.append(f"{self.sources.remotes[0].options.model} can be asked")
        # A Router in the place of the local model may have asked somebody else.
        source: Literal["local", "remote"] = side if side == "remote" else inner.source
        if side == "local" and inner.source == "remote":
            self._notes.append(inner.reason)
        if side == "remote" and left_out is not None:
            self._notes.append(left_out)
        return Route(
            source=source,
            policy=self._options.policy,
            reason=self._told(reason),
            p_correct=p_correct,
            cost_usd=sum(attempt.cost_usd for attempt in self.sources.attempts),
        )


def _chained(opening: list[Event], events: Events) -> Events:
    """What was taken from the events, and the rest of them."""
    yield from opening
    yield from events
