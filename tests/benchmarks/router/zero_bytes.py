"""Fuzzed prompts with identifiers through the whole router, and a server that counts every byte.

Real: the router, the guard, the remote client, HTTP, the server process and its count. Made up: the
prompts. The local model is a voice that answers at once and is never trusted, so every policy
wants the remote as often as it can.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import places
import privacy_recall
from identifier_text import hidden, prose
from identifiers import GROUPS, VARIANTS, pool
from launch import Served, serve_scripted, write_answers
from router_fakes import FakeLedger, FakePack, Voice
from target_rows import Job, Row, least, most

from edgellm.errors import EdgellmError
from edgellm.routing.options import Policy
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.remote import RemoteBackend, RemoteOptions
from edgellm.routing.remote.options import USUAL, Price
from edgellm.routing.router import Router
from edgellm.stream import Event, Message, Request, complete

POLICIES: tuple[Policy, ...] = (
    "prefer-local", "prefer-remote", "remote-only", "route", "cascade", "auto", "hedge", "shadow",
    "ask",
)  # fmt: skip
CODE_WORD = "Project Blue Heron"
CLEAN_CONTROL = 50


@dataclass(frozen=True, slots=True)
class Case:
    """A request, the identifier in it, where it is, and what the assistant has said already."""

    request: Request
    secret: str
    place: str
    prefix: str = ""


@dataclass
class Count:
    """What a server saw of one mode, and what became of the requests."""

    requests: int = 0
    bytes: int = 0
    connections: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


def cases(number: int, seed: int = 0) -> Iterator[Case]:
    """Fuzzed prompts: every kind of identifier, writing and place in turn, else by chance."""
    c = random.Random(f"fuzz {seed}")
    for i in range(number):
        identifier = c.choice(pool(GROUPS[i % len(GROUPS)]))
        variant = c.choice(list(VARIANTS))
        text = hidden(identifier, c, variant)
        place = places.NAMES[i % len(places.NAMES)]
        request, prefix = places.put(place, text, lambda: prose(c, c.randint(1, 3)), i)
        yield Case(request, VARIANTS[variant](identifier.text), place, prefix)


def with_code_word(case: Case) -> Case:
    """The same place, but what is in it is only secret because the user says so."""

    def tell(text: str) -> str:
        return text.replace(case.secret, CODE_WORD)

    messages = tuple(Message(m.role, tell(m.content)) for m in case.request.messages)
    prompt = None if case.request.prompt is None else tell(case.request.prompt)
    stop = tuple(tell(word) for word in case.request.stop)
    request = Request(messages=messages, prompt=prompt, stop=stop, max_tokens=8)
    return Case(request, CODE_WORD, case.place, tell(case.prefix))


def local() -> Voice:
    return Voice("small", ("I", " am", " small"))


def routers(server: Served, options: PrivacyOptions, policies: tuple[Policy, ...]) -> list[Router]:
    """One router for each policy; they share the guard, whose searches are remembered."""
    guard, pack = Guard(options), FakePack(after=0.0, before=0.0)
    card = RemoteOptions(
        server.url(), "big", price=Price(0.0, 0.0), capabilities=USUAL | {"prefill"}
    )
    remote = RemoteBackend(card)
    return [Router(local(), [remote], p, pack, guard, None, FakeLedger()) for p in policies]


def ask(router: Router, request: Request, prefix: str = "") -> str:
    """Who answered, or the name of the refusal."""
    try:
        return complete(_events(router, request, prefix)).route.source
    except EdgellmError as error:
        return type(error).__name__


def _events(router: Router, request: Request, prefix: str) -> Iterator[Event]:
    return router.stream(request, prefix) if prefix else router.stream(request)


def run(
    fuzz: Iterator[Case], options: PrivacyOptions, policies: tuple[Policy, ...] = POLICIES
) -> Count:
    """All cases under one mode, policies in turn, each followed by a turn from which the
    identifier is gone: the conversation stays tainted."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        key = write_answers(Path(folder) / "key", [("never asked", "yes", 0.5)])
        with serve_scripted(key) as server:
            ready = routers(server, options, policies)
            for i, case in enumerate(fuzz):
                router = ready[i % len(ready)]
                count.outcomes[ask(router, case.request, case.prefix)] += 1
                count.requests += 1
                later = places.after(case.request, case.secret) if options.mode != "off" else None
                if later is not None:
                    count.outcomes[ask(router, later)] += 1
                    count.requests += 1
            for router in ready:
                router.close()
            seen = server.state()
    count.bytes, count.connections = seen["received_bytes"], seen["connections"]
    return count


def control() -> Count:
    """Clean prompts through the same door: they must arrive, or the count would prove nothing."""
    c = random.Random("clean")
    clean = (Case(Request.user(prose(c, 3)), "", "user") for _ in range(CLEAN_CONTROL))
    return run(clean, PrivacyOptions(), ("remote-only",))


def masked(fuzz: Iterator[Case]) -> tuple[int, int, list[str]]:
    """(prompts, those in whose outgoing bytes the identifier still stands, their places): mode mask
    sends, so here the exact bytes are looked at instead of counted."""
    guard = Guard(PrivacyOptions("mask"))
    card = RemoteOptions("http://127.0.0.1:9/v1", "big", capabilities=USUAL | {"prefill"})
    remote, asked, leaks = RemoteBackend(card), 0, []
    for case in fuzz:
        if case.prefix:
            continue  # a preview shows a request; what goes on from a prefix is masked alike
        body = guard.preview(remote, case.request).decode()
        asked += 1
        if places.as_json(places.core(case.secret)) in body:
            leaks.append(f"{case.place}: {case.secret}")
    return asked, len(leaks), leaks


def rows(job: Job) -> Iterator[Row]:
    """Part `fuzz` of the target table."""
    said = f"made-up prompts, {len(GROUPS)} groups of identifiers, {len(places.NAMES)} places"
    real = "router, guard, HTTP, the server's count"
    off = PrivacyOptions("off")
    modes: dict[str, Callable[[], Count]] = {
        "local-only, guard off": lambda: run(cases(job.fuzz), off, ("local-only",)),
        "pin-local, 9 policies": lambda: run(cases(job.fuzz), PrivacyOptions("pin-local")),
        "block, 9 policies": lambda: run(cases(job.fuzz), PrivacyOptions("block")),
        "ask without consent, 9 policies": lambda: run(cases(job.fuzz), PrivacyOptions("ask")),
        "deny pattern, 9 policies": lambda: run(
            map(with_code_word, cases(job.fuzz)), PrivacyOptions("off", deny=("blue heron",))
        ),
        "host not allowed, 9 policies": lambda: run(
            cases(job.fuzz), PrivacyOptions("off", hosts=frozenset({"elsewhere.example"}))
        ),
    }
    zero = most(0, "0 bytes")
    for name, count in ((name, measure()) for name, measure in modes.items()):
        outcomes = ", ".join(f"{n} {who}" for who, n in sorted(count.outcomes.items()))
        text = f"{count.bytes} bytes, {count.connections} connections, {count.requests} requests"
        yield Row("fuzz", f"bytes to the remote: {name}", f"{text} ({outcomes})", count.bytes, zero,
                  zero, real, said)  # fmt: skip
    asked, leaks, _ = masked(cases(job.fuzz))
    yield Row("fuzz", "mask: identifiers left in the outgoing bytes", f"{leaks} of {asked}", leaks,
              most(0, "0"), most(0, "0"), "guard, encoding", said)  # fmt: skip
    seen = control()
    yield Row("fuzz", "control: clean prompts do arrive", f"{seen.bytes} bytes of {seen.requests}",
              seen.bytes, least(1, "> 0"), None, real, "prompts")  # fmt: skip
    yield from recall_rows(max(job.fuzz // 25, 20))


def recall_rows(texts: int) -> Iterator[Row]:
    """How well identifiers are found, by kind, and what is not covered."""
    found = privacy_recall.measure(texts)
    real, said = "detectors; Python's documentation", f"{texts} made-up texts a group"
    yield Row(
        "fuzz",
        "recall of identifiers with a checksum",
        f"{found.checksummed:.4f}",
        found.checksummed,
        least(0.99, "≥ .99"),
        least(0.99, "per kind"),
        real,
        said,
    )
    yield Row(
        "fuzz",
        "clean texts with a false finding",
        f"{found.false_share:.2%}",
        found.false_share,
        most(0.01, "≤ 1 %"),
        most(0.01, "per kind"),
        real,
        said,
    )
    shares = (
        ("recall by kind", found.groups),
        ("recall by writing", found.variants),
        ("false findings by text", found.clean),
        ("false findings where nobody can tell", found.ambiguous),
        ("not covered: still found when written with", found.not_covered),
    )
    for name, values in shares:
        text = "; ".join(f"{key} {value:.1%}" for key, value in values.items())
        yield Row("fuzz", name, text, None, None, None, real, said)
    yield Row("fuzz", "not covered at all", ", ".join(privacy_recall.WITHOUT_PATTERN))
