"""onnxruntime-genai's speed as one JSON document; runs in an environment that has that package.

    python genai_speed.py --model FOLDER --threads 2 -p 512 -n 128 -d 0,512 -r 5

Prefill is `append_tokens` of random ids. Decoding is what its users write: `generate_next_token`,
greedy, with the end of sequence ruled out. The first call after a prompt only picks a token, so it
comes before the clock; each later one is a forward pass of one token. Depth 0 has one prompt token
in the cache, which genai cannot do without. Loading is outside the clock, a warm-up run before.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime_genai as og

SEED = 0


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def load(folder: Path, threads: int) -> Any:
    config = og.Config(str(folder))
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    return og.Model(config)


def generator(model: Any, total: int) -> Any:
    """An empty cache with room for `total` tokens; it shares past and present, as exported."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=total, min_length=total, do_sample=False)
    return og.Generator(model, params)


def prefill_seconds(model: Any, draw: Callable[[int], list[int]], depth: int, new: int) -> float:
    made = generator(model, depth + new + 1)
    if depth:
        made.append_tokens(draw(depth))
    ids = draw(new)
    started = time.perf_counter()
    made.append_tokens(ids)
    return time.perf_counter() - started


def decode_seconds(model: Any, draw: Callable[[int], list[int]], depth: int, new: int) -> float:
    made = generator(model, max(depth, 1) + new + 2)
    made.append_tokens(draw(max(depth, 1)))
    made.generate_next_token()
    started = time.perf_counter()
    for _ in range(new):
        made.generate_next_token()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    for name in ("-p", "-n", "-d"):
        parser.add_argument(name, type=numbers, required=True)
    parser.add_argument("-r", type=int, default=5)
    asked = parser.parse_args()
    model = load(asked.model, asked.threads)
    vocabulary = json.loads((asked.model / "genai_config.json").read_bytes())["model"]["vocab_size"]
    source = random.Random(SEED)

    def draw(count: int) -> list[int]:
        return [source.randrange(vocabulary) for _ in range(count)]

    rows = []
    tests = [("pp", n, prefill_seconds) for n in asked.p]
    tests += [("tg", n, decode_seconds) for n in asked.n]
    for depth in asked.d:
        for kind, new, seconds in tests:
            seconds(model, draw, depth, new if kind == "pp" else 1)
            samples = [new / seconds(model, draw, depth, new) for _ in range(asked.r)]
            rows.append({"test": f"{kind}{new}", "depth": depth, "samples": samples})
    print(json.dumps({"version": og.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
