"""Prints the fault matrix of one remote: what the client makes of each fault, and how fast.

    python tests/benchmarks/router/faults.py [--first-token-s 0.5] [--rounds 3]

Real: the sockets, the HTTP, the server's misbehaviour (tests/routing/servers, a process of its
own), the client, the times. No model answers here. `ms` is the slowest round from the call to the
error, which is when a fail-over can begin, or to the end of the answer. The limits are short so
that the table takes seconds; a wait ends a few milliseconds after its limit, whatever that is.
`billed` is how many failed requests a vendor may charge for.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "routing" / "servers"))

from launch import Served, serve_faults

from edgellm.errors import EdgellmError
from edgellm.routing.remote import (
    Breaker,
    Limits,
    RemoteBackend,
    RemoteOptions,
    RemoteStream,
    Retry,
)
from edgellm.stream import Completion, Request, complete

ASK = Request.user("What do you say?")
ROW = "{:32} {:12} {:44} {:>3} {:>6} {:>8}"
# fault → what has to come of it; "answer" or the name of an error.
MATRIX = {
    "refused": "RemoteFailed",
    "name unknown": "RemoteFailed",
    "certificate not trusted": "AccessDenied",
    "TLS handshake hangs": "RemoteFailed",
    "no TLS there": "AccessDenied",
    "connect hangs": "RemoteFailed",
    "silent": "RemoteFailed",
    "silent-after-head": "RemoteFailed",
    "head-drip": "RemoteFailed",
    "pings": "RemoteFailed",
    "stall": "BrokenOff",
    "drip": "BrokenOff",
    "slow": "BrokenOff",
    "cut": "BrokenOff",
    "reset": "BrokenOff",
    "cut-before-text": "RemoteFailed",
    "ends-without-reason": "BrokenOff",
    "no-done": "answer",
    "malformed": "answer",
    "only-malformed": "RemoteFailed",
    "spread": "answer",
    "json": "answer",
    "web-page": "RemoteFailed",
    "broken-json": "RemoteFailed",
    "empty": "EmptyAnswer",
    "nothing": "RemoteFailed",
    "huge-line": "BrokenOff",
    "gzip-bomb": "RemoteFailed",
    "redirect": "RemoteFailed",
    "cookies": "answer",
    "401": "AccessDenied",
    "402": "AccessDenied",
    "404-model": "NotFound",
    "400-context": "ContextFull",
    "400-parameter": "Refused",
    "413": "ContextFull",
    "429": "Busy",
    "429-1s": "answer",
    "429-date": "answer",
    "429-60s": "Busy",
    "429-quota": "AccessDenied",
    "500": "RemoteFailed",
    "500-twice": "answer",
    "usage-none": "answer",
    "usage-zero": "answer",
    "usage-more-than-allowed": "answer",
    "finish-filter": "EmptyAnswer",
    "finish-filter-late": "BrokenOff",
    "error-event": "RemoteFailed",
    "error-event-once": "answer",
    "error-event-late": "BrokenOff",
    "tools": "EmptyAnswer",
    "halves": "answer",
    "breaker open": "NotTried",
    "cancelled by the user": "closed",
}
# These wait a second because the server asks for it.
PATIENT = ("429-1s", "429-date")
numbers = itertools.count()


@dataclass(frozen=True)
class Outcome:
    kind: str
    text: str
    attempts: int
    billed: int
    ms: float
    open: int


def url(served: Served, fault: str) -> str:
    """Where a fault is; each round has a path of its own, to be counted by itself."""
    match fault:
        case "refused":
            return served.url(port="refusing")
        case "name unknown":
            return "https://nowhere.invalid/v1"
        case "certificate not trusted":
            return served.url("ok", port="tls", scheme="https")
        case "TLS handshake hangs":
            return served.url(port="silent", scheme="https")
        case "no TLS there":
            return served.url(port="plaintext", scheme="https")
        case "connect hangs":
            return served.url(port="hanging")
        case "breaker open" | "cancelled by the user":
            return served.url(f"slow~{next(numbers)}")
    return served.url(f"{fault}~{next(numbers)}")


def meet(served: Served, fault: str, limits: Limits) -> Outcome:
    """What one call makes of a fault."""
    address, breaker = url(served, fault), Breaker()
    if fault == "breaker open":
        breaker.hold(60)
    options = RemoteOptions(address, "big", "sk-x", limits=limits, retry=Retry(3, 0.02, 0.05))
    events = RemoteBackend(options, breaker).stream(ASK)
    started = time.perf_counter()
    try:
        kind, text = result(events, fault)
    except EdgellmError as error:
        kind, text = type(error).__name__, reason(str(error))
    ms = (time.perf_counter() - started) * 1e3
    return Outcome(
        kind, text, events.attempts, events.maybe_billed, ms, still_open(served, address)
    )


def result(events: RemoteStream, fault: str) -> tuple[str, str]:
    if fault == "cancelled by the user":
        next(events)
        events.close()
        return "closed", "the socket is closed at once"
    answer: Completion = complete(events)
    notes = answer.route.reason.split("; ")[1:-1]
    return "answer", "; ".join(notes) or f"{len(answer.text)} characters"


def reason(line: str) -> str:
    """The middle of an error line: why."""
    line = line.removeprefix("big at 127.0.0.1 ").removeprefix("big at nowhere.invalid ")
    return line.removeprefix("gives no answer: ").partition(";")[0]


def still_open(served: Served, address: str) -> int:
    """How many connections the server still has, after a moment to notice."""
    name = address.split("/")[3] if address.count("/") > 3 else ""
    for _ in range(100):
        left = int(served.state().get(name, {}).get("open", 0))
        if not left:
            return 0
        time.sleep(0.005)
    return left


def show(served: Served, limits: Limits, rounds: int) -> bool:
    """Prints the table; whether every row came out as it must."""
    say: Callable[[str], None] = print
    say(ROW.format("fault", "comes to", "why", "try", "billed", "ms"))
    wrong = []
    for fault, wanted in MATRIX.items():
        chosen = Limits(0.5, 10, 1, 20) if fault in PATIENT else limits
        outcomes = [meet(served, fault, chosen) for _ in range(rounds)]
        last = max(outcomes, key=lambda outcome: outcome.ms)
        ok = all(outcome.kind == wanted and outcome.open == 0 for outcome in outcomes)
        billed = f"{last.billed}?" if last.billed else "0"
        line = (fault, last.kind, last.text[:44], last.attempts, billed, f"{last.ms:.1f}")
        say(ROW.format(*line) + ("" if ok else f"  WRONG, must be {wanted}"))
        wrong += [] if ok else [fault]
    say(
        f"{len(MATRIX) - len(wrong)} of {len(MATRIX)} answered or correctly refused, sockets closed"
    )
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--first-token-s", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    limits = Limits(
        connect_s=arguments.first_token_s / 2,
        first_token_s=arguments.first_token_s,
        idle_s=arguments.first_token_s / 2,
        total_s=arguments.first_token_s * 2,
    )
    with serve_faults() as served:
        print(
            f"limits: connect {limits.connect_s:g} s, first token {limits.first_token_s:g} s, "
            f"idle {limits.idle_s:g} s, total {limits.total_s:g} s; {arguments.rounds} rounds"
        )
        return 0 if show(served, limits, arguments.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
