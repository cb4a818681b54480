"""First-token times under `hedge`: python tests/benchmarks/router_hedge.py BUNDLE [--requests N]

Real: the local model, HTTP and the server's process. Simulated: when the server says its first
token, log-normal as recorded first-token times are (DiSCo, arXiv:2502.11417). Prompts differ in
length, so that the local model is sometimes the slower one. Prints one JSON document: milliseconds
to the first piece a reader gets, and how many answers the remote was asked for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "routing" / "servers"))

from launch import serve_scripted, write_answers

from edgellm.routing.attempts import closable
from edgellm.routing.options import Policy, RouterOptions
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.remote import RemoteOptions
from edgellm.routing.router import Router
from edgellm.runtime.local import LocalBackend, load
from edgellm.stream import Delta, Event, Message, Request, Sampling

POLICIES: tuple[Policy, ...] = ("local-only", "remote-only", "hedge")
# The first requests of a policy teach it how long its sides take.
WARM_UP = 10


def prompts(number: int) -> list[str]:
    """Questions of 20 to 600 words, the long ones rare; each begins in its own way, so that no
    prompt is in the cache already."""
    chance = random.Random(0)
    lengths = [min(int(20 * chance.paretovariate(0.8)), 600) for _ in range(number)]
    return [f"{i} " + "why is the sky so blue " * (n // 6) + "?" for i, n in enumerate(lengths)]


def first_piece_ms(events: Iterator[Event]) -> float:
    started = time.perf_counter()
    with closing(closable(events)) as open_events:
        for event in open_events:
            if isinstance(event, Delta) and event.text:
                return (time.perf_counter() - started) * 1e3
    return (time.perf_counter() - started) * 1e3


def measure(
    model: LocalBackend, url: str, policy: Policy | RouterOptions, asked: list[str]
) -> list[float]:
    router = Router(model, [RemoteOptions(url, "big")], policy, None, Guard(PrivacyOptions("off")))
    requests = [
        Request(messages=(Message("user", text),), max_tokens=8, sampling=Sampling())
        for text in asked
    ]
    return [first_piece_ms(router.stream(request)) for request in requests][WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--ttft-ms", type=float, default=150.0, help="the median of the remote")
    parser.add_argument("--ttft-sigma", type=float, default=0.8)
    chosen = parser.parse_args()
    asked = prompts(chosen.requests + WARM_UP)
    delays = ("--ttft-ms", str(chosen.ttft_ms), "--ttft-sigma", str(chosen.ttft_sigma))
    rows = {}
    for policy in POLICIES:
        with tempfile.TemporaryDirectory() as folder, load(chosen.bundle) as model:
            key = [(text, "blue " * 8, 0.5) for text in asked]
            answers = write_answers(Path(folder) / "key", key)
            with serve_scripted(answers, "--accuracy", "1", *delays) as server:
                taken = sorted(measure(model, server.url(), policy, asked))
                sent = server.state()["requests"]
        rows[policy] = {
            "p50_ms": round(taken[len(taken) // 2], 1),
            "p95_ms": round(taken[int(0.95 * len(taken))], 1),
            "remote_requests": sent,
        }
    best = min(rows[name]["p95_ms"] for name in ("local-only", "remote-only"))
    gain = 1 - rows["hedge"]["p95_ms"] / best
    print(json.dumps({"simulated": "remote first-token times", "rows": rows,
                      "hedge_p95_gain": round(gain, 3)}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
