"""How many tokens a prompt has, without the tokenizer that no remote lends: at least, about, and
at most."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgellm.stream import Request

# English takes about 4.2 bytes a token in the vocabularies of 2023 to 2026, code and other scripts
# less.
MOST_BYTES_PER_TOKEN = 4
BYTES_PER_TOKEN = 3
TOKENS_PER_MESSAGE = 4
# A chat template may add a system prompt that we never see; SmolLM2's makes 25 tokens of nothing.
TOKENS_PER_TEMPLATE = 32
# Twice what the templates we know put around a message.
MOST_TOKENS_PER_MESSAGE = 8


def fewest_prompt_tokens(request: Request, prefix: str = "") -> int:
    """Rather too few, for asking whether a prompt can fit at all."""
    return max(1, sum(map(_bytes, _texts(request, prefix))) // MOST_BYTES_PER_TOKEN)


def prompt_estimate(request: Request, prefix: str = "") -> int:
    """About how many, rather too many: what is booked where no server has counted."""
    frame = TOKENS_PER_TEMPLATE + TOKENS_PER_MESSAGE * len(request.messages)
    said = sum(token_estimate(text) for text in _texts(request, prefix))
    return said + (frame if request.messages else 0)


def most_prompt_tokens(request: Request, prefix: str = "", attempts: int = 1) -> int:
    """An upper bound for a byte-level vocabulary, where every token has a byte or more.

    It is one for `prompt_estimate` too. `attempts`: the requests that one call may come to, each
    of which may be billed.
    """
    frame = TOKENS_PER_TEMPLATE + MOST_TOKENS_PER_MESSAGE * (len(request.messages) + bool(prefix))
    return attempts * (sum(map(_bytes, _texts(request, prefix))) + frame)


def token_estimate(text: str) -> int:
    """About how many tokens a text has, rather too many."""
    return math.ceil(_bytes(text) / BYTES_PER_TOKEN)


def _texts(request: Request, prefix: str) -> Iterator[str]:
    yield from (message.content for message in request.messages)
    yield from (request.prompt or "", prefix)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
