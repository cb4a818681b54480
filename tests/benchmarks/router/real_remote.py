"""A cascade over two real models: SmolLM2-135M here, and behind llama.cpp's server the same family
of weights in another format, run by another engine and shown more worked examples.

Real: both models, their mistakes, HTTP, a server that is not ours. No key, no declared accuracy.
Nothing is simulated; the gap between the two is small, and published as it is.
"""

from __future__ import annotations

import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import recording
from items import Item
from overhead import request
from target_rows import Job, Row

from edgellm.errors import EdgellmError
from edgellm.routing.confidence.calibrate import make_pack
from edgellm.routing.evaluation.records import read
from edgellm.routing.graders import grade
from edgellm.routing.options import RouterOptions
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.remote import RemoteBackend, RemoteOptions
from edgellm.routing.remote.wire import Outgoing
from edgellm.routing.router import Router
from edgellm.runtime.local import load
from edgellm.stream import Backend, Message, Request, complete

CONTEXT_TOKENS = 2048
SHOTS = 5
START_S = 60.0
NAME = "smollm2-few-shot"


@dataclass(frozen=True, slots=True)
class Score:
    right: int
    total: int
    asked: int = 0

    def __str__(self) -> str:
        return f"{self.right / self.total:.1%}"


class FewShot(RemoteBackend):
    """A remote that shows the model worked examples of the same task before each question, as a
    better prompted service would. The examples come from calibration templates."""

    def __init__(self, options: RemoteOptions, shots: dict[str, tuple[Message, ...]]) -> None:
        super().__init__(options)
        self._shots = shots

    def outgoing(self, request: Request, prefix: str = "") -> Outgoing:
        shots = self._shots.get(request.messages[-1].content, ())
        return super().outgoing(replace(request, messages=(*shots, *request.messages)), prefix)


@contextmanager
def llama_server(program: Path, gguf: Path) -> Iterator[str]:
    """The base URL of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "-m", str(gguf), "-c", str(CONTEXT_TOKENS), "--port", str(port)]
    silence = subprocess.DEVNULL
    process = subprocess.Popen([*command, "-t", "1", "-np", "1"], stdout=silence, stderr=silence)
    try:
        _wait(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise SystemExit(f"llama-server did not answer within {START_S:.0f} s")


def examples(items: Sequence[Item], asked: Sequence[Item]) -> dict[str, tuple[Message, ...]]:
    """SHOTS worked examples for each question: same family and level where there are any, never
    from the templates of the test."""
    known = defaultdict(list)
    for item in items:
        if item.split == "calibration" and len({turn["role"] for turn in item.prompt}) <= 2:
            known[item.family].append(item)
    c = random.Random("shots")
    found = {}
    for item in asked:
        near = sorted(known[item.family], key=lambda other: abs(other.level - item.level))
        chosen = c.sample(near[: SHOTS * 2], min(SHOTS, len(near)))
        turns = [_worked(other) for other in chosen]
        found[item.prompt[-1]["content"]] = tuple(message for pair in turns for message in pair)
    return found


def _worked(item: Item) -> tuple[Message, Message]:
    """The last question of an item and its full answer, the one that restates the question."""
    said = item.answer[-1] if item.grader != "regex" else "I don't know."
    return Message("user", item.prompt[-1]["content"]), Message("assistant", said)


def right(backend: Backend, item: Item) -> tuple[bool, bool]:
    """(whether the answer is right, whether the remote gave it)"""
    try:
        answer = complete(backend.stream(request(item)))
    except EdgellmError:
        return False, True
    verdict = grade(item.grader, answer.text, item.answer, item.choices)
    return verdict.lenient, answer.route.source == "remote"


def score(backend: Backend, items: Sequence[Item]) -> tuple[Score, list[bool]]:
    seen = [right(backend, item) for item in items]
    verdicts = [ok for ok, _ in seen]
    return Score(sum(verdicts), len(seen), sum(remote for _, remote in seen)), verdicts


def chosen_items(job: Job) -> list[Item]:
    """Test items of all families and levels alike; questions about earlier turns keep theirs."""
    test = [item for item in recording.read_items(job.record) if item.split == "test"]
    random.Random("real").shuffle(test)
    return test[: job.items]


def rows(job: Job) -> Iterator[Row]:
    """Part `real` of the target table."""
    metric = "cascade over two real models"
    if job.bundle is None or job.gguf is None or job.llama_server is None:
        yield Row("real", metric, "needs --bundle, --gguf and --llama-server")
        return
    records, asked = read(job.record, job.precision), chosen_items(job)
    pack = make_pack(records)
    shots = examples(recording.read_items(job.record), asked)
    with (
        llama_server(job.llama_server.resolve(), job.gguf) as url,
        load(str(job.bundle.resolve())) as model,
    ):
        remote = FewShot(RemoteOptions(url, NAME), shots)
        # Half of the calibration answers are below the median: half of the calls.
        options = RouterOptions("cascade", threshold=_median(pack.kept_scores.tolist()))
        router = Router(model, [remote], options, pack, Guard(PrivacyOptions("off")))
        here, mine = score(model, asked)
        there, theirs = score(remote, asked)
        both, _ = score(router, asked)
    either = sum(a or b for a, b in zip(mine, theirs, strict=True))
    text = (
        f"local {here}, remote {there}, cascade {both} with {both.asked} of {len(asked)} answers "
        f"from the remote (threshold {options.threshold:.2f}), a perfect router "
        f"{either / len(asked):.1%}"
    )
    yield Row("real", metric, text, None, None, None, "both models, HTTP, llama.cpp's server", "")
    kinds = {
        "only the remote is right": sum(b and not a for a, b in zip(mine, theirs, strict=True)),
        "both": sum(a and b for a, b in zip(mine, theirs, strict=True)),
        "neither": sum(not a and not b for a, b in zip(mine, theirs, strict=True)),
        "only here": sum(a and not b for a, b in zip(mine, theirs, strict=True)),
    }
    counts = ", ".join(f"{name} {count}" for name, count in kinds.items())
    yield Row("real", "needy, good, hopeless, regret", counts, None, None, None, "", "")


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
