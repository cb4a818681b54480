"""Answers of a bundle to all items, with what its pass showed: recorded once, replayed by tests.

    python tests/benchmarks/router/record.py --bundle B --out DIR [--part 0/2] [--threads 1]

Greedy, every prompt from an empty cache. DIR holds items.jsonl; answers are appended to
DIR/<precision>.<part>.part.jsonl, so an interrupted run goes on where it was. A run that is not one
of several parts ends with DIR/<precision>.npz; else `--pack FOLDER` makes it; see recording.py.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout  # noqa: F401  (the packages of this checkout come before installed ones)
import numpy as np
import recording
from items import Item

from edgellm.routing.graders import grade
from edgellm.runtime.local import LocalBackend, load
from edgellm.runtime.options import LoadOptions
from edgellm.stream import Delta, Done, Message, Request, Sampling, Start

PROGRESS_EVERY = 50


@dataclass(frozen=True, slots=True)
class Job:
    bundle: Path
    out: Path
    precision: str
    part: int
    parts: int
    threads: int
    splits: list[str] | None

    @property
    def file(self) -> Path:
        return self.out / f"{self.precision}.{self.part}of{self.parts}.part.jsonl"


def answer(model: LocalBackend, item: Item) -> dict[str, Any]:
    """One answer as a JSON line of a part file."""
    messages = tuple(Message(turn["role"], turn["content"]) for turn in item.prompt)  # type: ignore[arg-type]
    request = Request(
        messages=messages, max_tokens=item.max_tokens, sampling=Sampling(), observe=True
    )
    model.forget()
    text, tokens, prompt_tokens = "", [], 0
    for event in model.stream(request):
        match event:
            case Start():
                prompt_tokens = event.prompt_tokens
            case Delta():
                text += event.text
                tokens += event.logprobs
            case Done():
                done = event
    if done.hidden is None:
        raise SystemExit("this bundle shows no hidden states; export it again")
    verdict = grade(item.grader, text, item.answer, item.choices)
    states = [done.hidden.prompt_last, done.hidden.prompt_mean, done.hidden.answer_mean]
    return {
        "id": item.id,
        "text": text,
        "tokens": [[t.token_id, t.logprob, t.entropy, t.margin] for t in tokens],
        "prompt_tokens": prompt_tokens,
        "finish": done.finish_reason,
        "strict": verdict.strict,
        "lenient": verdict.lenient,
        "hidden": base64.b64encode(np.array(states, np.float16).tobytes()).decode(),
    }


def todo(job: Job, known: list[Item]) -> Iterator[Item]:
    """The items of this part that have no answer yet, in an order that mixes all families, so
    that an unfinished recording is a fair sample: first one item of each template, and so on."""
    order = [item for item in known if job.splits is None or item.split in job.splits]
    random.Random("order").shuffle(order)
    order.sort(key=lambda item: int(item.id.split("-shift-")[0].rpartition("-")[2]))
    done = {line["id"] for line in recording.lines(job.file)}
    for item in order[job.part :: job.parts]:
        if item.id not in done:
            yield item


def record(job: Job, known: list[Item]) -> None:
    waiting = list(todo(job, known))
    started = time.perf_counter()
    with (
        load(str(job.bundle.resolve()), LoadOptions(threads=job.threads)) as model,
        job.file.open("a", encoding="utf-8") as file,
    ):
        file.write("\n")  # behind a line that an interrupted run did not finish
        for count, item in enumerate(waiting, 1):
            file.write(json.dumps(answer(model, item)) + "\n")
            if count % PROGRESS_EVERY == 0 or count == len(waiting):
                file.flush()
                each = (time.perf_counter() - started) / count
                left = each * (len(waiting) - count)
                print(f"{count}/{len(waiting)}  {each:.2f} s an item, {left / 60:.1f} min left",
                      file=sys.stderr, flush=True)  # fmt: skip


def about(bundle: Path) -> dict[str, Any]:
    """What the answers depend on."""
    from edgellm import __version__
    from edgellm.bundle import manifest

    made = manifest.read(bundle)
    graph = made.graphs["native"]
    return {
        "model": made.source.reference,
        "source_sha256": made.source.sha256,
        "weights_sha256": made.files[graph.data].sha256,
        "graph_sha256": made.files[graph.path].sha256,
        "precision": made.recipe.get("name"),
        "accuracy_level": made.recipe.get("accuracy_level"),
        "hidden_layer": graph.hidden_layer,
        "sampling": "greedy",
        "edgellm": __version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="0/1", help="this share of the items, for example 0/2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--split", action="append", help="only these splits")
    parser.add_argument("--pack", type=Path, help="join the parts of --out in this folder instead")
    args = parser.parse_args()
    meta = about(args.bundle)
    if args.pack:
        recording.pack(args.out, args.pack, meta["precision"], meta)
        return
    part, parts = map(int, args.part.split("/"))
    job = Job(args.bundle, args.out, meta["precision"], part, parts, args.threads, args.split)
    record(job, recording.read_items(args.out))
    if parts == 1 and not args.split:
        recording.pack(args.out, args.out, meta["precision"], meta)


if __name__ == "__main__":
    main()
