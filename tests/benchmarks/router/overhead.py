"""What deciding takes, against what answering takes.

Real: the router, the guard, a pack fitted to the recording, the recorded answers, the local model's
own time where there is a bundle. Where only the
router's time is wanted, a local side gives the recorded answers at once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import recording
from items import Item
from target_rows import Job, Row, missing, most

from edgellm.routing.attempts import closable
from edgellm.routing.confidence.calibrate import make_pack
from edgellm.routing.confidence.pack import Pack
from edgellm.routing.evaluation.records import Graded, read
from edgellm.routing.options import Policy, RouterOptions
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.remote import RemoteBackend, RemoteOptions
from edgellm.routing.remote.options import Price
from edgellm.routing.router import Router
from edgellm.runtime.local import load
from edgellm.stream import (
    Delta,
    Done,
    Event,
    Message,
    Request,
    Sampling,
    Start,
    Timings,
    Usage,
    complete,
)

DECIDED = 400
REAL = "router, pack, recorded answers, times"
POLICIES: dict[Policy, str] = {
    "prefer-local": "by rules (prefer-local)",
    "route": "by the prefill's hidden state (route)",
}
ONE_MS, SOME_MS = most(1.0, "≤ 1 ms"), most(0.3, "≤ 0.3 ms")


def request(item: Item) -> Request:
    messages = tuple(Message(turn["role"], turn["content"]) for turn in item.prompt)  # type: ignore[arg-type]
    return Request(messages=messages, max_tokens=item.max_tokens, sampling=Sampling())


def spread(taken: Sequence[float]) -> tuple[float, str]:
    """(median, words)"""
    ordered = sorted(taken)
    median = statistics.median(ordered)
    p95 = ordered[int(0.95 * len(ordered))]
    return median, f"median {median:.3f} ms, p95 {p95:.3f} ms of {len(ordered)}"


def each_ms(action: Callable[[int], object], number: int) -> list[float]:
    """The second half of twice as many."""
    taken = []
    for i in range(2 * number):
        started = time.perf_counter()
        action(i % number)
        taken.append((time.perf_counter() - started) * 1e3)
    return taken[number:]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A local side that gives recorded answers at once, found by the last turn."""

    answers: dict[str, Graded]

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]:
        seen = self.answers[request.messages[-1].content].observed
        yield Start("local", seen.prompt_tokens)
        for token in seen.tokens[: request.max_tokens]:
            yield Delta(".", (token,))
        done = Usage(seen.prompt_tokens, len(seen.tokens))
        hidden = seen.hidden if request.observe else None
        yield Done("stop", done, Timings(0.0, 0.0, 0.0, 0.0), hidden=hidden)


def until_first_event(router: Router, asked: Request) -> None:
    with closing(closable(router.stream(asked))) as events:
        next(events)


def decided_ms(
    pack: Pack, policy: Policy, asked: Sequence[Request], answers: Sequence[Graded]
) -> list[float]:
    """From the call to the first event of a side that needs no time. Nothing is escalated."""
    remote = RemoteBackend(RemoteOptions("http://127.0.0.1:9/v1", "big", price=Price(1, 1)))
    local = Replayed({g.observed.prompt: g for g in answers})
    options = RouterOptions(policy, threshold=0.0)
    routed = Router(local, [remote], options, pack, Guard(PrivacyOptions("off")))
    return each_ms(lambda i: until_first_event(routed, asked[i]), len(asked))


def judged_ms(pack: Pack, answers: Sequence[Graded]) -> list[float]:
    return each_ms(lambda i: pack.after(answers[i].observed), len(answers))


def answered_ms(bundle: Path, items: Sequence[Item]) -> list[float]:
    """Milliseconds that the real model takes for each, its signals included."""
    taken = []
    with load(str(bundle.resolve())) as model:
        complete(model.stream(request(items[0])))
        for item in items:
            model.forget()
            started = time.perf_counter()
            complete(model.stream(replace(request(item), observe=True)))
            taken.append((time.perf_counter() - started) * 1e3)
    return taken


def rows(job: Job) -> Iterator[Row]:
    """Part `overhead` of the target table."""
    records = read(job.record, job.precision)
    pack, test = make_pack(records), records.split("test").graded
    items = {item.id: item for item in recording.read_items(job.record)}
    asked = [request(items[g.id]) for g in test[:DECIDED]]
    voices = "the local side answers at once"
    for policy, name in POLICIES.items():
        median, text = spread(decided_ms(pack, policy, asked, test))
        yield Row("overhead", f"prompt-only decision, {name}", text, median, ONE_MS, SOME_MS, REAL,
                  voices)  # fmt: skip
    # A text is searched once, so these are new.
    fresh = [Request.user(f"{i} {r.messages[-1].content}") for i, r in enumerate(asked)]
    guard = Guard()
    taken = [_judge_ms(guard, one) for one in fresh]
    median, text = spread(taken)
    yield Row("overhead", "privacy guard, a prompt never seen", text, median, None, None, REAL, "")
    after = judged_ms(pack, test[:DECIDED])
    median, text = spread(after)
    yield Row(
        "overhead", "fused judgement after an answer", text, median, ONE_MS, SOME_MS, REAL, ""
    )
    yield _share_row(job, pack, test, items)


def _judge_ms(guard: Guard, asked: Request) -> float:
    started = time.perf_counter()
    guard.judge(asked)
    return (time.perf_counter() - started) * 1e3


def _share_row(job: Job, pack: Pack, test: Sequence[Graded], items: dict[str, Item]) -> Row:
    metric = "fused judgement, share of the local answer's time"
    bounds = (most(0.03, "≤ 3 %"), most(0.01, "≤ 1 %"))
    if job.bundle is None:
        return missing("overhead", metric, "needs --bundle", *bounds)
    some = test[:: max(len(test) // job.items, 1)][: job.items]
    taken = answered_ms(job.bundle, [items[g.id] for g in some])
    judged = judged_ms(pack, some)
    shares = sorted(j / t for j, t in zip(judged, taken, strict=True))
    share = sum(judged) / sum(taken)
    text = (
        f"{share:.2%} in all, worst answer {shares[-1]:.2%} ({len(some)} answers, median "
        f"{statistics.median(taken):.0f} ms; the judgement {statistics.median(judged):.3f} ms)"
    )
    return Row("overhead", metric, text, share, *bounds, REAL + ", the local model", "")
