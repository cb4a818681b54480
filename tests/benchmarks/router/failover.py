"""The fault matrix: the client alone as faults.py has it, then the whole router over the same
server, with a local voice that takes over at once.

Real: sockets, HTTP, misbehaviour in a process of its own, times. Simulated: what the sides say.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import faults
from launch import Served, serve_faults
from misbehave import FAULTS
from router_fakes import QUESTION, FakeLedger, Voice
from target_rows import Bound, Job, Row, least, most

from edgellm.errors import EdgellmError
from edgellm.routing.attempts import closable
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.remote import Breaker, Limits, RemoteBackend, RemoteOptions, Retry
from edgellm.routing.router import Router
from edgellm.stream import Delta, Done

LIMITS = Limits(connect_s=0.3, first_token_s=0.3, idle_s=0.3, total_s=1.0)
PORTS = ("refusing", "hanging", "silent")
ALLOWED_MS = 50.0
OPEN_CALLS = 400


@dataclass(frozen=True, slots=True)
class Met:
    """How the router came through one fault. `first_ms` is the first text a reader saw, `late_ms`
    by how much the take-over passed the limit of the silence before it."""

    fault: str
    outcome: str
    first_ms: float
    late_ms: float
    here: bool


def router(served: Served, fault: str) -> Router:
    port = fault if fault in PORTS else "main"
    path = "" if fault in PORTS else f"{fault}~{next(faults.numbers)}"
    card = RemoteOptions(served.url(path, port), "big", limits=LIMITS, retry=Retry(3, 0.02, 0.05))
    local = Voice("small", ("I", " am", " small"))
    remote = RemoteBackend(card)
    return Router(
        local, [remote], "prefer-remote", None, Guard(PrivacyOptions("off")), None, FakeLedger()
    )


def meet(served: Served, fault: str) -> Met:
    """One answer; between two events the reader never waits longer than a limit and a moment."""
    started = before = time.perf_counter()
    first_ms, silence_ms, outcome, here = 0.0, 0.0, "no Done", False
    try:
        with closing(closable(router(served, fault).stream(QUESTION))) as events:
            for event in events:
                now = time.perf_counter()
                silence_ms, before = max(silence_ms, (now - before) * 1e3), now
                if isinstance(event, Delta) and event.text and not first_ms:
                    first_ms = (now - started) * 1e3
                if isinstance(event, Done):
                    outcome, here = "answered", event.route.source == "local"
    except EdgellmError as error:
        outcome = type(error).__name__
    return Met(fault, outcome, first_ms, silence_ms - LIMITS.first_token_s * 1e3, here)


def open_breaker() -> list[float]:
    """Milliseconds to the first local event while the remote rests, sorted."""
    breaker = Breaker()
    breaker.hold(600)
    remote = RemoteBackend(RemoteOptions("http://127.0.0.1:9/v1", "big"), breaker)
    local = Voice("small", ("I",))
    held = Router(local, [remote], "prefer-remote", None, Guard(PrivacyOptions("off")))
    taken = []
    for _ in range(2 * OPEN_CALLS):
        started = time.perf_counter()
        with closing(closable(held.stream(QUESTION))) as events:
            next(events)
            taken.append((time.perf_counter() - started) * 1e3)
    return sorted(taken[OPEN_CALLS:])


def client_matrix(served: Served, rounds: int) -> tuple[int, list[str]]:
    """(faults, those that came to something else than they must) of the client alone."""
    limits, wrong = Limits(0.25, 0.5, 0.25, 1.0), []
    for fault, wanted in faults.MATRIX.items():
        chosen = Limits(0.5, 10, 1, 20) if fault in faults.PATIENT else limits
        outcomes = [faults.meet(served, fault, chosen) for _ in range(min(rounds, 2))]
        if any(outcome.kind != wanted or outcome.open for outcome in outcomes):
            wrong.append(fault)
    return len(faults.MATRIX), wrong


def rows(job: Job) -> Iterator[Row]:
    """Part `faults` of the target table."""
    real, said = "sockets, HTTP, the server's misbehaviour, times", "what the two sides say"
    with serve_faults() as served:
        count, wrong = client_matrix(served, job.rounds)
        met = [
            meet(served, fault) for _ in range(job.rounds) for fault in (*sorted(FAULTS), *PORTS)
        ]
    share = 1 - len(wrong) / count
    every = least(1.0, "100 %")
    text = f"{count - len(wrong)} of {count}" + (f", not {', '.join(wrong)}" if wrong else "")
    yield Row("faults", "client: answered or correctly refused, sockets closed", text, share, every,
              every, real, said)  # fmt: skip
    lost = sorted({m.fault for m in met if m.outcome != "answered"})
    text = f"{len(met) - sum(m.outcome != 'answered' for m in met)} of {len(met)}"
    yield Row("faults", "router: answered", text + (f", not {', '.join(lost)}" if lost else ""),
              1 - len(lost) / len(FAULTS), every, every, real, said)  # fmt: skip
    over = [m for m in met if m.here]
    worst = max(over, key=lambda m: m.late_ms)
    limit = most(ALLOWED_MS, "first-token limit + 50 ms")
    within = [m.late_ms <= ALLOWED_MS for m in over]
    text = (
        f"latest {worst.late_ms:+.1f} ms against the {LIMITS.first_token_s * 1e3:.0f} ms limit "
        f"({worst.fault}), median {statistics.median(m.late_ms for m in over):+.1f} ms, "
        f"{sum(within)} of {len(over)} take-overs within"
    )
    yield Row("faults", "fail-over", text, worst.late_ms, limit, limit, real, said)
    yield _open_row(open_breaker(), most(1.0, "≤ 1 ms"))


def _open_row(taken: list[float], limit: Bound) -> Row:
    p95 = taken[int(0.95 * len(taken))]
    text = f"median {statistics.median(taken):.3f} ms, p95 {p95:.3f} ms of {len(taken)}"
    return Row("faults", "open breaker: first local event", text, p95, limit, limit,
               "router, breaker, times", "what the local side says")  # fmt: skip
