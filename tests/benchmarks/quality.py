"""What an import from GGUF costs in quality: nothing but the rounding of activations.

    python tests/benchmarks/quality.py --gguf model.gguf

1. The float32 bundle against the numpy forward pass on the checkpoint's own weights: greedy
   answers and the logits at every position.
2. The exact import against the float32 bundle: KL and agreement on a text, with activations
   rounded to int8 (accuracy level 4, the default) and without (level 0).

A few minutes on two cores; other programs may run meanwhile, nothing is timed. Exit code 1 when a
target is missed. The second part is `edgellm eval BUNDLE --reference BUNDLE` on two bundles.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - puts this checkout's packages on the path
import numpy as np
import platformdirs
import prepare
from numpy.typing import NDArray

from edgellm.bench.quality import Report, Scope, default_text, evaluate, text_windows
from edgellm.runtime.cache import KVCache
from edgellm.runtime.local import open_logits, open_session
from edgellm.runtime.opened import open_folder
from edgellm.runtime.options import LoadOptions
from edgellm_export import reference
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.recipe import recipe
from edgellm_export.weights import to_float32

Float32 = NDArray[np.float32]

ANSWER_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees because",
    "Dear Sir or Madam,\n\nI am writing to",
    "Question: What is 17 times 23?\nAnswer:",
    "The three laws of thermodynamics are",
    "<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n",
    "Bonjour, je m'appelle",
    "import numpy as np\n\n# Compute the mean of",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number; `met` says whether it is what was promised."""

    what: str
    value: str
    target: str
    met: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder for the bundles")
    parser.add_argument("--tokens", type=int, default=4096, help="score so many [4096]")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args()
    if not asked.gguf.is_file():
        parser.error(f"there is no {asked.gguf}")
    work = asked.work or platformdirs.user_cache_path("edgellm-benchmarks", appauthor=False)
    work.mkdir(parents=True, exist_ok=True)
    figures = list(measure(asked.gguf, work, Scope(tokens=asked.tokens)))
    print(table(figures))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return 0 if all(figure.met for figure in figures) else 1


def measure(gguf: Path, work: Path, scope: Scope) -> Iterator[Figure]:
    """All figures; the bundles are made anew."""
    float32 = prepare.bundle(gguf, recipe("fp32"), work / "bundle-fp32")
    yield from against_numpy(float32, open_checkpoint(gguf))
    for level in (4, 0):
        made_by = replace(recipe("exact"), accuracy_level=level)
        bundle = prepare.bundle(gguf, made_by, work / f"bundle-exact-level{level}")
        yield from distance_figures(against_bundle(bundle, float32, scope), level)


def against_numpy(bundle: Path, checkpoint: Checkpoint) -> Iterator[Figure]:
    """Greedy answers and logits of the bundle against the numpy forward pass.

    numpy runs once over prompt and answer. When its likeliest token is the answer's at every
    position, it would have given the same answer alone.
    """
    opened = open_folder(bundle)
    session = open_session(opened, LoadOptions())

    @functools.cache
    def weight(name: str) -> Float32:
        return to_float32(checkpoint.weight(name))

    same, largest = 0, 0.0
    for number, prompt in enumerate(PROMPTS, start=1):
        prepare.say(f"numpy: prompt {number} of {len(PROMPTS)}")
        ids = opened.tokenizer.encode(prompt)
        cache = KVCache(opened.manifest.shape, len(ids) + ANSWER_TOKENS)
        rows = [session.forward(ids, range(len(ids)), cache).copy()]
        answer: list[int] = []
        while len(answer) < ANSWER_TOKENS:
            answer.append(int(rows[-1][-1].argmax()))
            rows.append(session.forward(answer[-1:], [0], cache).copy())
        expected = reference.forward(checkpoint.config, weight, [*ids, *answer])
        largest = max(largest, float(np.abs(np.concatenate(rows) - expected).max()))
        likeliest = expected[len(ids) - 1 : -1].argmax(axis=-1)
        same += int((likeliest == np.array(answer)).sum())
    wanted = ANSWER_TOKENS * len(PROMPTS)
    yield Figure(
        "fp32 bundle, greedy tokens as numpy's", f"{same}", f"all {wanted}", same == wanted
    )
    yield Figure("fp32 bundle, largest logit error", f"{largest:.2g}", "< 1e-3", largest < 1e-3)


def against_bundle(bundle: Path, float32: Path, scope: Scope) -> Report:
    """How far `bundle` is from `float32` on the text that every CPython carries."""
    options = LoadOptions(context_tokens=scope.window_tokens)
    with open_logits(str(bundle), options) as model, open_logits(str(float32), options) as truth:
        windows = text_windows(default_text(), scope, [model, truth])
        return evaluate(told(windows, bundle.name), model, truth)


def told(windows: list[Any], name: str) -> Iterator[Any]:
    for number, window in enumerate(windows, start=1):
        prepare.say(f"{name}: window {number} of {len(windows)}")
        yield window


def distance_figures(report: Report, level: int) -> Iterator[Figure]:
    """KL at both levels; how often both prefer the same token only where rounding could move it."""
    activations, limit = {4: ("int8", 0.005), 0: ("float32", 0.0003)}[level]
    scored = f"exact import, {activations} activations, {report.tokens} tokens"
    kl, top1 = known(report.kl_mean), known(report.top1_agreement)
    yield Figure(f"{scored}: mean KL", f"{kl:.3g}", f"< {limit}", kl < limit)
    if level:
        yield Figure(f"{scored}: same best token", f"{top1:.2%}", "> 95 %", top1 > 0.95)


def known(value: float | None) -> float:
    """NaN for what was not measured: it meets no target."""
    return math.nan if value is None else value


def table(figures: list[Figure]) -> str:
    """Markdown."""
    lines = ["| figure | measured | target | |", "| --- | ---: | ---: | --- |"]
    for figure in figures:
        word = "met" if figure.met else "MISSED"
        lines.append(f"| {figure.what} | {figure.value} | {figure.target} | {word} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
