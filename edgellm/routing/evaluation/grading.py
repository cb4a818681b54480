"""Ask a local model graded prompts, and keep what it showed: the raw material of a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import Corrupt, UsageError
from edgellm.routing.evaluation.records import Graded, read_items
from edgellm.routing.graders import GRADERS, grade
from edgellm.routing.signals import Observed
from edgellm.stream import Backend, Delta, Done, Event, Message, Request, Sampling, Start

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """One graded prompt of the user's JSONL."""

    number: int
    messages: tuple[Message, ...]
    accepted: tuple[str, ...]
    grader: str
    family: str
    max_tokens: int


def read_prompts(path: Path) -> list[Asked]:
    """The graded prompts of a JSONL file: `{"prompt", "answer", "grader"?, "family"?,
    "max_tokens"?}`, where prompt is text or a list of messages and answer text or a list.

    Corrupt names the first line that is not one.
    """
    return [_asked(path, number, raw) for number, raw in enumerate(read_items(path), 1)]


def _asked(path: Path, number: int, raw: Mapping[str, Any]) -> Asked:
    try:
        prompt, answer = raw["prompt"], raw["answer"]
        turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        accepted = (answer,) if isinstance(answer, str) else tuple(answer)
        grader, limit = raw.get("grader", "lenient"), raw.get("max_tokens", MAX_TOKENS)
        if grader not in GRADERS:
            raise UsageError(f"unknown grader {grader!r}; there are: {', '.join(GRADERS)}")
        if not accepted or not all(isinstance(text, str) and text for text in accepted):
            raise UsageError("answer must be text, or a list of texts")
        Request(messages=messages, max_tokens=limit)
        family = str(raw.get("family", "mine"))
        return Asked(number, messages, accepted, grader, family, limit)
    except (KeyError, TypeError, UsageError) as error:
        raise Corrupt(f"{path} line {number} is not a graded prompt: {error}") from error


def answers(
    backend: Backend, asked: Sequence[Asked], progress: Callable[[int], None]
) -> Iterable[Graded]:
    """Greedy answers and their grades, one after another; `progress` hears how many are done."""
    for done, one in enumerate(asked, 1):
        request = Request(
            messages=one.messages, max_tokens=one.max_tokens, sampling=Sampling(), observe=True
        )
        observed = observe(backend.stream(request), one.messages[-1].content)
        verdict = grade(one.grader, observed.text, one.accepted)
        name = f"{one.number}"
        yield Graded(name, one.family, 1, name, "mine", observed, verdict.strict, verdict.lenient)
        progress(done)


def observe(events: Iterable[Event], prompt: str) -> Observed:
    """What one whole answer showed."""
    deltas, prompt_tokens = [], 0
    for event in events:
        match event:
            case Start():
                prompt_tokens = event.prompt_tokens
            case Delta():
                deltas.append(event)
            case Done():
                return Observed(
                    prompt,
                    prompt_tokens,
                    tuple(token for delta in deltas for token in delta.logprobs),
                    event.finish_reason,
                    event.hidden,
                    "".join(delta.text for delta in deltas),
                )
    raise UsageError("the stream ended before Done; it was closed or its Backend is broken")
