"""What the router adds to a request: python tests/benchmarks/router_overhead.py [--requests N]

Sources answer at once, so that all the time left is the router's: deciding, watching, holding back.
The pack here takes no time; what a real one takes is measured beside it. Prints one JSON document.
Milliseconds a request, medians and 95th percentiles; the first half of the requests warms up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "routing" / "router"))

from router_fakes import FakeGuard, FakePack, FakeRemote, Voice, remote

from edgellm.routing.options import RouterOptions
from edgellm.routing.policies import Facts, RemoteFacts, decide
from edgellm.routing.router import Router
from edgellm.stream import Backend, Request, complete

WORDS = tuple(f"word{number} " for number in range(64))
PROMPT = Request.user("Name the capital of France. " * 20)


def times_ms(action: Callable[[], object], requests: int) -> dict[str, float]:
    taken = []
    for _ in range(2 * requests):
        started = time.perf_counter()
        action()
        taken.append((time.perf_counter() - started) * 1e3)
    kept = sorted(taken[requests:])
    return {
        "median_ms": round(statistics.median(kept), 4),
        "p95_ms": round(kept[int(0.95 * len(kept))], 4),
    }


def answering(backend: Backend) -> Callable[[], object]:
    return lambda: complete(backend.stream(PROMPT))


def routed(policy: str, pack: FakePack) -> Router:
    options = RouterOptions(policy)  # type: ignore[arg-type]
    return Router(Voice("small", WORDS), [FakeRemote(remote())], options, pack, FakeGuard())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=500)
    requests = parser.parse_args().requests
    sure = FakePack(after=0.99, before=0.99)
    facts = Facts("route", remotes=(RemoteFacts("big"),), p_before=0.5)
    rows = {
        "decide": times_ms(lambda: decide(facts), requests),
        "local model alone": times_ms(answering(Voice("small", WORDS)), requests),
    }
    for policy in ("local-only", "prefer-local", "route", "cascade", "auto"):
        rows[policy] = times_ms(answering(routed(policy, sure)), requests)
    alone = rows["local model alone"]["median_ms"]
    for name, row in rows.items():
        if name not in ("decide", "local model alone"):
            row["added_ms"] = round(row["median_ms"] - alone, 4)
    print(json.dumps({"tokens": len(WORDS), "requests": requests, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
