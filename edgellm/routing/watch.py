"""Watching a local answer grow: what a confidence pack makes of it, and when it is given up."""

from __future__ import annotations

from typing import Literal

from edgellm.routing.gain import Bar
from edgellm.routing.options import Policy, RouterOptions
from edgellm.routing.policies import Judged
from edgellm.routing.seams import Confidence
from edgellm.routing.signals import Observed
from edgellm.stream import Delta, Done, Event, Replace, Request, Start, TokenLogprob

Seen = Literal["go on", "unsure", "sure"]


def last_user_turn(request: Request) -> str:
    """The prompt that a confidence pack reads."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message.content
    return request.prompt or ""


class Watch:
    """A sequential test over one local answer.

    `before`: the pack is asked once, at the first token, when the prefill has been seen. `during`:
    every `check_tokens` and at the end. `p_before` and `p_after` are what it said last.
    """

    def __init__(
        self, confidence: Confidence, request: Request, bar: Bar, judged: Judged, abort: bool
    ) -> None:
        self.bar = bar
        self.p_before: float | None = None
        self.p_after: float | None = None
        self._confidence = confidence
        self._prompt = last_user_turn(request)
        self._judged = judged
        self._abort = abort
        self._prompt_tokens = 0
        self._tokens: list[TokenLogprob] = []
        self._text = ""
        self._looked = 0
        self._below = 0

    @property
    def p_correct(self) -> float | None:
        """What the pack said last."""
        return self.p_before if self.p_after is None else self.p_after

    @property
    def unsure(self) -> bool:
        return self.p_correct is not None and self.bar.escalates(self.p_correct)

    def reason(self, policy: Policy) -> str:
        """Its verdict in words."""
        p, bar = self.p_correct, self.bar
        if p is None:
            return f"{policy}: the pack has no opinion, so it stays here"
        if p < bar.low:
            return f"{policy}: a remote would hardly know better"
        if not self.unsure:
            sure = "asking a remote would not pay" if policy == "auto" else "confident here"
            return f"{policy}: {sure}"
        return f"{policy}: unsure here (p {p:.2f} below {bar.high:.2f})"

    def see(self, event: Event, options: RouterOptions) -> Seen:
        """What to do after this event. "sure": it will not be asked again before the end."""
        match event:
            case Start():
                self._prompt_tokens = event.prompt_tokens
            case Replace():
                self._tokens.clear()
                self._text = ""
            case Delta():
                self._tokens += event.logprobs
                self._text += event.text
                if self._judged == "before" and self.p_before is None:
                    return self._begun()
                return self._so_far(options)
            case Done():
                if self._judged == "before":
                    return "sure"
                self.p_after = self._confidence.after(self._observed(event))
                return "unsure" if self.bar.escalates(self.p_after) else "sure"
        return "go on"

    def _begun(self) -> Seen:
        self.p_before = self._confidence.before(self._observed(None))
        if self.p_before is None:
            return "sure"
        return "unsure" if self.bar.escalates(self.p_before) else "sure"

    def _so_far(self, options: RouterOptions) -> Seen:
        """Given up when several looks in a row are clearly below the bar."""
        due = len(self._tokens) - self._looked >= options.check_tokens
        if self._judged == "before" or not (self._abort and options.abort_checks and due):
            return "go on"
        self._looked = len(self._tokens)
        p = self._confidence.after(self._observed(None))
        clearly = Bar(max(self.bar.high - options.abort_margin, 0.0), self.bar.low)
        self._below = self._below + 1 if clearly.escalates(p) else 0
        if self._below < options.abort_checks:
            return "go on"
        self.p_after = p
        return "unsure"

    def _observed(self, done: Done | None) -> Observed:
        return Observed(
            prompt=self._prompt,
            prompt_tokens=self._prompt_tokens,
            tokens=tuple(self._tokens),
            finish_reason=done.finish_reason if done else None,
            hidden=done.hidden if done else None,
            text=self._text,
        )
