"""Processes that race for one budget: python budget_race.py DATABASE URL CAP_USD SESSION START

Real: the processes, the SQLite file, HTTP, the token counts of client and server. Simulated: the
price. Each client asks all its questions, some of which the cap refuses; it waits for the file
START, so that all begin together, and prints what came of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path += [
    str(Path(__file__).resolve().parents[2] / folder)
    for folder in ("benchmarks", "benchmarks/router", "routing/servers")
]

import checkout
from launch import serve_scripted, write_answers
from target_rows import Job, Row, most

from edgellm.errors import BudgetExhausted, EdgellmError
from edgellm.routing.budget import Budget, BudgetOptions
from edgellm.routing.database import Database
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.remote.options import Price, RemoteOptions
from edgellm.routing.router import Router
from edgellm.stream import Event, Message, Request, Sampling, Usage, complete

PRICE = Price(2.5, 10.0)
QUESTIONS, TOKENS = 12, 40
PROMPT = "Please tell me everything you know about number {number} of client {client}."
# The cap lets about this share of all questions through.
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tokens as the file and as the server have them, dollars, and how often a cap said no."""

    booked: Usage
    served: Usage
    spent_usd: float
    cap_usd: float
    answered: int
    refused: int
    open_reservations: int

    @property
    def overshoot_cents(self) -> float:
        billed = PRICE.cost_usd(self.served)
        return max(self.spent_usd - self.cap_usd, billed - self.cap_usd, 0.0) * 100


class Nobody:
    """The local side, which policy remote-only never asks."""

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]:
        raise EdgellmError("there is no local model here")


def request(client: int, number: int) -> Request:
    text = PROMPT.format(client=client, number=number)
    return Request(messages=(Message("user", text),), max_tokens=TOKENS, sampling=Sampling())


def client(database: Path, url: str, cap_usd: float, session: str, start: Path) -> None:
    """One racing process."""
    budget = Budget(Database(database), BudgetOptions(usd_day=cap_usd), session)
    card = RemoteOptions(url, "big", price=PRICE)
    router = Router(Nobody(), [card], "remote-only", None, Guard(PrivacyOptions("off")), budget)
    answered = refused = 0
    print("ready", flush=True)
    while not start.exists():
        time.sleep(0.005)
    for number in range(QUESTIONS):
        try:
            complete(router.stream(request(int(session), number)))
            answered += 1
        except BudgetExhausted:
            refused += 1
    print(json.dumps({"answered": answered, "refused": refused}))


def race(clients: int) -> Outcome:
    """All clients at once on one file and one server."""
    asked = [request(c, n).messages[0].content for c in range(clients) for n in range(QUESTIONS)]
    rows = [(text, "word " * (5 + i % TOKENS), 0.5) for i, text in enumerate(asked)]
    likely = Usage(24, TOKENS // 2)
    cap_usd = round(SHARE * clients * QUESTIONS * PRICE.cost_usd(likely), 4)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        database, start = place / "router.db", place / "start"
        Database(database)
        key = write_answers(place / "key", rows)
        with serve_scripted(key, "--accuracy", "1", "--ttft-ms", "5") as server:
            said = _run(clients, [str(database), server.url(), str(cap_usd)], start)
            state = server.state()
        with Database(database).reading() as db:
            row = db.execute(
                "SELECT total(prompt_tokens), total(completion_tokens), total(usd), "
                "sum(usd IS NULL) FROM spending"
            ).fetchone()
    served = Usage(state["prompt_tokens"], state["completion_tokens"])
    booked = Usage(int(row[0]), int(row[1]))
    answered, refused = (sum(one[name] for one in said) for name in ("answered", "refused"))
    return Outcome(booked, served, row[2], cap_usd, answered, refused, row[3])


def _run(clients: int, arguments: list[str], start: Path) -> list[dict[str, int]]:
    command = [sys.executable, str(Path(__file__).resolve())]
    processes = [
        subprocess.Popen(
            [*command, *arguments, str(i), str(start)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, **checkout.environment()},
        )
        for i in range(clients)
    ]  # fmt: skip
    for process in processes:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("a client did not start")
    start.touch()
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("a client failed")
    return [json.loads(text) for text in said]


def rows(job: Job) -> Iterator[Row]:
    """Part `budget` of the target table."""
    seen = race(job.clients)
    real, said = f"{job.clients} processes, SQLite, HTTP, token counts", "prices"
    spent = (
        f"{seen.overshoot_cents:.4f} ¢ (${seen.spent_usd:.4f} of ${seen.cap_usd:.4f} spent; "
        f"{seen.answered} answered, {seen.refused} refused, {seen.open_reservations} left open)"
    )
    zero = most(0, "≤ 0 ¢")
    yield Row("budget", "overshoot", spent, seen.overshoot_cents, zero, zero, real, said)
    off = abs(sum_of(seen.booked) - sum_of(seen.served))
    tokens = (
        f"off by {off} (ledger {seen.booked.prompt_tokens} + {seen.booked.completion_tokens}, "
        f"server {seen.served.prompt_tokens} + {seen.served.completion_tokens})"
    )
    exact = most(0, "ledger = server")
    yield Row("budget", "tokens booked and served", tokens, off, exact, exact, real, said)


def sum_of(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


if __name__ == "__main__":
    client(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
