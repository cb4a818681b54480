"""One request as it came, and what of it a remote would get."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.routing.spans import Shortened, shorten
from edgellm.stream import Request


@dataclass(frozen=True, slots=True)
class Asked:
    """`prefix` is the answer's beginning. `sent` stays apart from what the local model gets."""

    request: Request
    prefix: str
    sent: Request
    cut: Shortened | None = None

    @staticmethod
    def of(request: Request, prefix: str, passage_tokens: int | None) -> Asked:
        """`passage_tokens` None: a remote gets all of it."""
        if passage_tokens is None:
            return Asked(request, prefix, request)
        cut = shorten(request, passage_tokens)
        return Asked(request, prefix, cut.request, cut)

    @property
    def note(self) -> str | None:
        """How much was left out, None when nothing was."""
        cut = self.cut
        if cut is None or cut.kept_characters == cut.characters:
            return None
        return f"sent {cut.kept_tokens:,} of about {cut.tokens:,} tokens"
