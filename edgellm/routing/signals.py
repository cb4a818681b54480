"""What one local answer shows about itself; it comes out of the pass that made the answer."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.stream import FinishReason, Hidden, TokenLogprob


@dataclass(frozen=True, slots=True)
class Observed:
    """A local answer, or its beginning: `finish_reason` and `hidden` are None while it goes on.

    `prompt` is the last user turn. Before generation there are no tokens and no text.
    """

    prompt: str
    prompt_tokens: int
    tokens: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    hidden: Hidden | None
    text: str
