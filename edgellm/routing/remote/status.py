"""What an HTTP status means for the caller: try again, or one of our errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from edgellm.errors import ContextFull, EdgellmError, NotFound, Refused
from edgellm.routing.errors import AccessDenied, RemoteFailed
from edgellm.routing.remote.options import RemoteOptions
from edgellm.routing.remote.watch import Trouble

# What trying again may cure (RFC 9110, RFC 6585); 529 is Anthropic's and Cloudflare's "overloaded".
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
# An account without money answers 429 too, and no waiting helps.
EMPTY_ACCOUNT = re.compile(r"insufficient_quota|billing|credit balance", re.IGNORECASE)
TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|context (length|window|size)|maximum context"
    r"|too many (input )?tokens|prompt is too long",
    re.IGNORECASE,
)
QUOTE_CHARACTERS = 200


class Passing(Trouble):
    """A status that may be another one soon. `retry_after_s` is what the server asks for."""

    def __init__(self, status: int, retry_after_s: float | None) -> None:
        super().__init__("status", f"HTTP {status}", again=True)
        self.status = status
        self.retry_after_s = retry_after_s


def judge(
    options: RemoteOptions, status: int, headers: Mapping[str, str], body: bytes
) -> EdgellmError | Passing | None:
    """None for a reply to read on, Passing for one to try again, else the error to raise."""
    what = f"{options.model} at {options.host}"
    if 200 <= status < 300:
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity":
            return RemoteFailed(
                f"{what} answers compressed ({encoding!r:.20}), unasked; use another"
            )
        return None
    said = quote(options, body)
    match status:
        case 301 | 302 | 303 | 307 | 308:
            return RemoteFailed(
                f"{options.host} sends us on to another address, which is not followed; "
                "give the final address as --remote"
            )
        case 401 | 402 | 403 | 407:
            return AccessDenied(
                f"{options.host} refuses us: HTTP {status}{said}; check EDGELLM_REMOTE_KEY"
            )
        case 404:
            return NotFound(f"{what} is not there: HTTP 404{said}; check the address and the model")
        case 413:
            return ContextFull(f"the request is too large for {what}: HTTP 413{said}; shorten it")
        case 400 | 422 if TOO_LONG.search(body.decode("utf-8", "replace")):
            return ContextFull(f"the prompt does not fit {what}{said}; shorten it")
        case 429 if EMPTY_ACCOUNT.search(body.decode("utf-8", "replace")):
            return AccessDenied(f"the account at {options.host} is used up{said}; top it up")
    if status in PASSING_STATUS:
        return Passing(status, retry_after_s(headers))
    return Refused(f"{what} refuses the request: HTTP {status}{said}; change the request")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by Retry-After: a number, or a date, measured by the server's own clock."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
        return float(text)
    moment = _moment(text)
    if moment is None:
        return None
    here = _moment(headers.get("date", ""))
    return max(moment - (time.time() if here is None else here), 0.0)


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def quote(options: RemoteOptions, body: bytes) -> str:
    """What the server says, as `: text` on one short line without the key, or nothing."""
    message: object = None
    try:
        found = json.loads(body)
        error = found.get("error", found) if isinstance(found, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        pass
    return f": {plain(options, message)}" if isinstance(message, str) and message.strip() else ""


def plain(options: RemoteOptions, text: str) -> str:
    """Foreign text made safe to show: without the key, control characters and length."""
    if options.secret is not None:
        text = options.secret.hide(text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= QUOTE_CHARACTERS else text[: QUOTE_CHARACTERS - 1] + "…"
