"""The only door to a remote. What it refuses is never handed to the code that speaks HTTP."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from edgellm.errors import PrivacyBlocked, UsageError
from edgellm.routing.privacy.detectors import Finding, find
from edgellm.routing.privacy.mask import Mask
from edgellm.routing.privacy.options import PrivacyOptions
from edgellm.routing.seams import Remote, RemoteEvents, Verdict, VerdictKind
from edgellm.stream import Event, Message, Request

if TYPE_CHECKING:
    from edgellm.routing.remote import RemoteBackend

T = TypeVar("T")
# Conversations whose taint is remembered, and texts whose findings are.
REMEMBERED = 1024
MODES: dict[str, VerdictKind] = {
    "pin-local": "pin-local",
    "mask": "mask",
    "ask": "ask",
    "block": "block",
}


class Guard:
    """Judges requests, masks them where that is wanted, and opens the remote's stream.

    Once something was found in a conversation, that conversation stays on this machine (or masked)
    to its end, also when the turn that held it is edited away.
    """

    def __init__(self, options: PrivacyOptions | None = None) -> None:
        self.options = options or PrivacyOptions()
        self._deny = [re.compile(pattern, re.IGNORECASE) for pattern in self.options.deny]
        self._known: OrderedDict[str, tuple[Finding, ...]] = OrderedDict()
        self._tainted: OrderedDict[str, str] = OrderedDict()
        self._allowed: set[str] = set()

    def judge(self, request: Request, whole: Request | None = None) -> Verdict:
        """Whether the request may leave; the reason names kinds and counts, never the text."""
        return self._judge(request, "", whole or request)

    def allow(self, request: Request, whole: Request | None = None) -> None:
        """The user has seen what was found in this request and lets it leave (mode `ask`)."""
        self._allowed |= {_digest([text[f.start : f.end]]) for text, f in self.findings(request)}
        self._tainted.pop(_conversation(whole or request), None)

    def stream(
        self, remote: Remote, request: Request, prefix: str = "", whole: Request | None = None
    ) -> RemoteEvents:
        """The remote's answer, placeholders restored. PrivacyBlocked before anything is sent."""
        asked = self._admitted(remote)
        verdict = self._judge(request, prefix, whole or request)
        sent, prefix, mask = self._outgoing(request, prefix, verdict)
        events = asked.stream(sent, prefix)
        return _Restored(events, mask) if mask is not None else events

    def preview(self, remote: Remote, request: Request, whole: Request | None = None) -> bytes:
        """The exact bytes of the body that `stream` would send, once the user allows it where that
        is what is missing. Sends nothing."""
        asked = self._admitted(remote)
        verdict = self._judge(request, "", whole or request)
        if verdict.kind == "ask":
            verdict = Verdict()
        sent, _, _ = self._outgoing(request, "", verdict)
        return asked.outgoing(sent).body

    def findings(self, request: Request) -> list[tuple[str, Finding]]:
        """Every finding with the text it is in, for showing it to the user on this machine."""
        return [(text, f) for text in _texts(request) for f in self._find(text)]

    def _judge(self, request: Request, prefix: str, whole: Request) -> Verdict:
        texts = [*_texts(request), *([prefix] if prefix else [])]
        if any(pattern.search(text) for pattern in self._deny for text in texts):
            return Verdict("block", "the text matches what you said must never leave")
        if self.options.mode == "off":
            return Verdict()
        found = [(text, f) for text in texts for f in self._find(text)]
        kinds = Counter(
            f.kind for text, f in found if _digest([text[f.start : f.end]]) not in self._allowed
        )
        why = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        conversation = _conversation(whole)
        if why:
            self._remember(self._tainted, conversation, why)
        elif conversation in self._tainted:
            why = f"{self._tainted[conversation]}, earlier in this conversation"
        if why:
            return Verdict(MODES[self.options.mode], f"found {why}")
        return Verdict("allow", "you let it leave" if found else "")

    def _outgoing(
        self, request: Request, prefix: str, verdict: Verdict
    ) -> tuple[Request, str, Mask | None]:
        """What may be sent by a verdict on everything that is in it."""
        if not verdict.may_leave:
            raise PrivacyBlocked(
                f"nothing was sent: {verdict.why} ({verdict.kind}); answer it locally, or say "
                "--privacy mask or off"
            )
        if verdict.kind != "mask":
            return request, prefix, None
        mask = Mask()
        for text in (*_texts(request), prefix):
            mask.reserve(text)
        return self._masked(request, mask), mask.hide(prefix, self._find(prefix)), mask

    def _masked(self, request: Request, mask: Mask) -> Request:
        """Every text that would be sent; a masked stop word stops at the placeholder, which is what
        the remote writes."""

        def hide(text: str) -> str:
            return mask.hide(text, self._find(text))

        return replace(
            request,
            prompt=None if request.prompt is None else hide(request.prompt),
            messages=tuple(Message(m.role, hide(m.content)) for m in request.messages),
            stop=tuple(hide(word) for word in request.stop),
        )

    def _find(self, text: str) -> tuple[Finding, ...]:
        """The findings of the wanted kinds; each text is searched once."""
        key = _digest([text])
        if key not in self._known:
            found = tuple(f for f in find(text) if f.kind in self.options.kinds)
            self._remember(self._known, key, found)
        return self._known[key]

    def _admitted(self, remote: Remote) -> RemoteBackend:
        """The remote as one that can be asked, if text may go to its host."""
        from edgellm.routing.remote import RemoteBackend

        if not isinstance(remote, RemoteBackend):
            raise UsageError(f"{remote.options.model} is no remote that can be asked")
        host = urlsplit(remote.options.url).hostname or ""
        if self.options.hosts and host.lower() not in self.options.hosts:
            raise PrivacyBlocked(f"nothing was sent: {host} is not among the hosts you allowed")
        return remote

    @staticmethod
    def _remember(table: OrderedDict[str, T], key: str, value: T) -> None:
        table[key] = value
        while len(table) > REMEMBERED:
            table.popitem(last=False)


class _Restored:
    """A remote's events with placeholders restored; `close` reaches the remote at once."""

    def __init__(self, events: RemoteEvents, mask: Mask) -> None:
        self._remote = events
        self._events = mask.restored(events)

    @property
    def maybe_billed(self) -> int:
        return self._remote.maybe_billed

    def close(self) -> None:
        self._remote.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)


def _conversation(request: Request) -> str:
    """A name for the conversation: its first question, which later turns repeat."""
    asked = [message.content for message in request.messages if message.role == "user"]
    return _digest(asked[:1] or [request.prompt or ""])


def _texts(request: Request) -> list[str]:
    """Every text of a request that would be sent."""
    if request.prompt is not None:
        return [request.prompt, *request.stop]
    return [*(message.content for message in request.messages), *request.stop]


def _digest(texts: Iterable[str]) -> str:
    """A name for texts that does not hold them."""
    whole = hashlib.sha256()
    for text in texts:
        data = text.encode(errors="surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()
