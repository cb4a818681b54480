"""Calibration text that needs no download: the model's own words, sampled with a seed.

Many streams are sampled side by side in one batch. Each is a chain of documents: every third is
begun from the end-of-text token alone, the others answer a short request. Where a document ends
the next begins, until a stream is as long as a window.
Source of the idea: Liu et al., arXiv:2305.17888 (LLM-QAT, data-free calibration).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle import template, tokenizer
from edgellm.bundle.manifest import Shape
from edgellm.errors import UsageError
from edgellm.runtime.session import load_onnxruntime
from edgellm.stream import Message
from edgellm_export.quantize.capture import Clock, Ids, Notice, open_graph

# Streams in one batch: more cost memory for their caches and give little more speed.
BATCH = 32
REQUESTS = (
    "Explain how a bicycle stays upright.",
    "Write a Python function that reverses a linked list.",
    "Tell me a short story about a lighthouse keeper.",
    "What were the causes of the French Revolution?",
    "How do I sort a dictionary by value in Python?",
    "Describe how a for loop works, with examples.",
    "List ten facts about the ocean.",
    "Write the manual of a command line tool that copies files.",
    "Solve: if 3x + 5 = 20, what is x? Explain each step.",
    "Write a polite email asking for a day off.",
    'Translate "good morning, how are you?" into French and Spanish.',
    "Give me a recipe for vegetable soup.",
    "Write a poem about autumn rain.",
    "Explain photosynthesis to a ten-year-old.",
    "What are the rules for naming variables in a programming language?",
    "What are the advantages of open source software?",
    "Make this sentence formal: gimme the report asap.",
    "How does the stock market work?",
    "Who was Ada Lovelace?",
    "Explain exceptions and how to handle errors in a program.",
    "Compare cats and dogs as pets.",
    "Write a dialogue between a doctor and a patient.",
    "Give me a plan for learning to play the piano.",
    "Summarize how a bill becomes a law.",
)


@dataclass(frozen=True, slots=True)
class Openings:
    """How documents begin, and the ids that end one."""

    prompts: tuple[tuple[int, ...], ...]
    ends: frozenset[int]

    def forever(self) -> Iterator[list[int]]:
        """Beginnings, one after another, again from the first when all are used."""
        while True:
            for prompt in self.prompts:
                yield list(prompt)


def openings(folder: Path, ends: Sequence[int]) -> Openings:
    """What the tokenizer and the chat template in `folder` make of REQUESTS."""
    words, chat = tokenizer.read(folder), template.read(folder)
    bare = words.encode("", wrap=True) or list(ends[-1:]) or [0]
    prompts: list[tuple[int, ...]] = []
    for i, request in enumerate(REQUESTS):
        if i % 2 == 0:
            prompts.append(tuple(bare))
        text = request if chat is None else chat.render([Message("user", request)])
        prompts.append(tuple(words.encode(text)))
    return Openings(tuple(prompts), frozenset(ends))


def ends(folder: Path) -> list[int]:
    """The ids that end an answer."""
    config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    found = config.get("eos_token_id", [])
    return list(found) if isinstance(found, list) else [found]


def windows_of(folder: Path, text: str, tokens: int, window: int) -> Ids:
    """`text` as ids (windows, `window`), at most `tokens` of them, spread over all of the text.

    UsageError when it does not fill one window.
    """
    ids = np.array(tokenizer.read(folder).encode(text, special=False), np.int64)
    count = len(ids) // window
    if count == 0:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens and one window is {window}; "
            "give a longer text"
        )
    rows = ids[: count * window].reshape(count, window)
    wanted = max(1, min(count, tokens // window))
    chosen: Ids = rows[np.linspace(0, count - 1, wanted).astype(int)]
    return chosen


def generate(
    graph: Path, shape: Shape, start: Openings, size: tuple[int, int], seed: int, notice: Notice
) -> Ids:
    """Ids (streams, length) in the model's own words, at temperature 1; `size` is that pair."""
    streams, length = size
    rng = np.random.default_rng(seed)
    prompts = start.forever()
    clock = Clock(-(-streams // BATCH) * length, notice, "writing calibration text")
    parts = []
    for first in range(0, streams, BATCH):
        rows = min(BATCH, streams - first)
        step = _batch(graph, shape, rows, length)
        parts.append(_sample(step, (rows, length), prompts, start.ends, rng, clock))
    return np.concatenate(parts)


def _sample(
    step: Callable[[Ids], NDArray[np.float32]],
    size: tuple[int, int],
    prompts: Iterator[list[int]],
    ends: frozenset[int],
    rng: np.random.Generator,
    clock: Clock,
) -> Ids:
    rows, length = size
    ids = np.zeros((rows, length), np.int64)
    given = [next(prompts) for _ in range(rows)]
    drawn = np.zeros(rows, np.int64)
    for t in range(length):
        for row in range(rows):
            if not given[row] and t and int(ids[row, t - 1]) in ends:
                given[row] = next(prompts)
            ids[row, t] = given[row].pop(0) if given[row] else drawn[row]
        drawn = _draw(step(ids[:, t : t + 1]), rng)
        clock.tick()
    return ids


def _draw(logits: NDArray[np.float32], rng: np.random.Generator) -> Ids:
    """One id for each row of logits (rows, V)."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1, dtype=np.float64)
    wanted = rng.random(len(shares)) * shares[:, -1]
    found = [
        int(np.searchsorted(row, at, side="right")) for row, at in zip(shares, wanted, strict=True)
    ]
    ids: Ids = np.minimum(np.array(found, np.int64), logits.shape[1] - 1)
    return ids


def _batch(
    graph: Path, shape: Shape, rows: int, length: int
) -> Callable[[Ids], NDArray[np.float32]]:
    """A function from the next ids (rows, 1) to logits (rows, V); it keeps the cache."""
    ort = load_onnxruntime()
    session = open_graph(graph)
    binding = session.io_binding()
    keep: list[Any] = []  # what is bound must live as long as the binding

    def bind(name: str, array: NDArray[Any], output: str | None = None) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        keep.extend((value, array))
        binding.bind_ortvalue_input(name, value)
        if output is not None:
            binding.bind_ortvalue_output(output, value)

    for name in [value.name for value in session.get_inputs() if value.name.startswith("past")]:
        cache = np.zeros((rows, shape.num_key_value_heads, length, shape.head_dim), np.float32)
        bind(name, cache, name.replace("past_key_values", "present"))
    logits = np.zeros((rows, 1, shape.vocab_size), np.float32)
    keep.append(ort.OrtValue.ortvalue_from_numpy(logits))
    binding.bind_ortvalue_output("logits", keep[-1])
    feed = np.zeros((rows, 1), np.int64)
    bind("input_ids", feed)
    seen = 0

    def step(ids: Ids) -> NDArray[np.float32]:
        nonlocal seen
        seen += 1
        feed[:] = ids
        del keep[-2:]  # the mask of the step before
        bind("attention_mask", np.ones((rows, seen), np.int64))
        session.run_with_iobinding(binding)
        return logits[:, 0]

    bind("attention_mask", np.ones((rows, 1), np.int64))
    return step
