"""Where in a request an identifier can be, and the turn that follows once it is gone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from edgellm.stream import Message, Request

NAMES = ("last turn", "earlier turn", "system message", "assistant's turn", "raw prompt", "prefix",
         "first of many turns", "stop word")  # fmt: skip


def put(place: str, text: str, clean: Callable[[], str], number: int) -> tuple[Request, str]:
    """(request, prefix) with `text` at that place and clean text everywhere else."""

    def say(*turns: tuple[str, str]) -> Request:
        messages = (Message(role, said) for role, said in turns)  # type: ignore[arg-type]
        return Request(messages=tuple(messages), max_tokens=8)

    # No two conversations begin alike, so that none is tainted by another.
    first = f"Case {number}. {clean()}"
    match place:
        case "last turn":
            return say(("user", first), ("assistant", "Yes."), ("user", text)), ""
        case "earlier turn":
            turns = [("user", first), ("assistant", clean()), ("user", text)]
            return say(*turns, ("assistant", clean()), ("user", clean())), ""
        case "system message":
            return say(("system", text), ("user", first)), ""
        case "assistant's turn":
            return say(("user", first), ("assistant", text), ("user", clean())), ""
        case "raw prompt":
            return Request(prompt=f"{first}\n{text}", max_tokens=8), ""
        case "prefix":
            return say(("user", first)), text
        case "first of many turns":
            rest = [(("user", "assistant")[i % 2], clean()) for i in range(1, 8)]
            return say(("user", f"{first} {text}"), *rest, ("user", clean())), ""
        case "stop word":
            return Request(Request.user(first).messages, max_tokens=8, stop=(text,)), ""
    raise ValueError(f"no place is called {place}")


def after(request: Request, secret: str) -> Request | None:
    """The next turn of the conversation, the message with the identifier deleted; None where that
    would be another conversation."""
    kept = tuple(m for m in request.messages if secret not in m.content)
    asked = [m for m in request.messages if m.role == "user"]
    if not asked or secret in asked[0].content or len(kept) == len(request.messages):
        return None
    return Request(messages=(*kept, Message("user", "And what else?")), max_tokens=8)


def core(secret: str) -> str:
    """What of an identifier must not be seen: of a URL or "word: password" only the password."""
    named = re.search(r"://app:(.*)@db\.internal", secret) or re.search(r"\w: (\S+)$", secret)
    return named[1] if named else secret


def as_json(text: str) -> str:
    """As it would stand in the body of a request."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
