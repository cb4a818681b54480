"""Watching a local answer grow: what a confidence pack makes of it, and when it is given up."""

from __future__ import annotations

from dataclasses import replace

from edgellm.errors import EdgellmError
from edgellm.routing.gain import Bar
from edgellm.routing.options import Policy, RouterOptions
from edgellm.routing.seams import Confidence, Continuing
from edgellm.routing.signals import Observed
from edgellm.stream import Delta, Done, Event, Replace, Request, Start, TokenLogprob


def last_user_turn(request: Request) -> str:
    """The prompt that a confidence pack reads."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message.content
    return request.prompt or ""


class Watch:
    """A sequential test over one local answer: a look every `check_tokens`, and one at its end.

    `p_correct` is what the pack said last.
    """

    def __init__(self, confidence: Confidence, request: Request, bar: Bar, abort: bool) -> None:
        self.bar = bar
        self.p_correct: float | None = None
        # What that was said of.
        self.seen: Observed | None = None
        self._confidence = confidence
        self._prompt = last_user_turn(request)
        self._abort = abort
        self._prompt_tokens = 0
        self._tokens: list[TokenLogprob] = []
        self._text = ""
        self._looked = 0
        self._below = 0

    @property
    def unsure(self) -> bool:
        return self.p_correct is not None and self.bar.escalates(self.p_correct)

    def reason(self, policy: Policy) -> str:
        """Its verdict in words."""
        p, bar = self.p_correct, self.bar
        if p is None:
            return f"{policy}: not judged"
        if p < bar.low:
            return f"{policy}: a remote would hardly know better"
        if not self.unsure:
            sure = "asking a remote would not pay" if policy == "auto" else "confident here"
            return f"{policy}: {sure}"
        return f"{policy}: unsure here ({bar.words(p)})"

    def see(self, event: Event, options: RouterOptions) -> bool:
        """Whether the answer should be given up after this event."""
        match event:
            case Start():
                self._prompt_tokens = event.prompt_tokens
            case Replace():
                self._tokens.clear()
                self._text, self._looked, self._below = "", 0, 0
            case Delta():
                self._tokens += event.logprobs
                self._text += event.text
                return self._so_far(options)
            case Done():
                self.seen = self.observed(event)
                self.p_correct = self._confidence.after(self.seen)
                return self.unsure
        return False

    def _so_far(self, options: RouterOptions) -> bool:
        """Given up when several looks in a row are clearly below the bar."""
        due = len(self._tokens) - self._looked >= options.check_tokens
        if not (self._abort and options.abort_checks and due):
            return False
        self._looked = len(self._tokens)
        seen = self.observed(None)
        p = self._confidence.after(seen)
        clearly = Bar(max(self.bar.high - options.abort_margin, 0.0), self.bar.low)
        self._below = self._below + 1 if clearly.escalates(p) else 0
        if self._below < options.abort_checks:
            return False
        self.p_correct, self.seen = p, seen
        return True

    def observed(self, done: Done | None) -> Observed:
        """What the answer showed so far; with `done`, all of it."""
        return Observed(
            prompt=self._prompt,
            prompt_tokens=self._prompt_tokens,
            tokens=tuple(self._tokens),
            finish_reason=done.finish_reason if done else None,
            hidden=done.hidden if done else None,
            text=self._text,
        )


def observe(local: Continuing, request: Request, prefix: str) -> Observed | None:
    """What the prefill and one token show, None when there is no answer to be had here.

    The prompt stays in the local model's cache, so an answer that follows begins at once.
    """
    asked = replace(request, max_tokens=1, observe=True, logprobs=request.logprobs or 0)
    tokens: tuple[TokenLogprob, ...] = ()
    prompt_tokens, text = 0, ""
    try:
        for event in local.stream(asked, prefix) if prefix else local.stream(asked):
            match event:
                case Start():
                    prompt_tokens = event.prompt_tokens
                case Delta():
                    tokens, text = (*tokens, *event.logprobs), text + event.text
                case Done():
                    prompt = last_user_turn(request)
                    return Observed(prompt, prompt_tokens, tokens, None, event.hidden, text)
    except EdgellmError:
        # The answer itself will fail too, and there it is decided what follows.
        return None
    return None
