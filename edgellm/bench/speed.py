"""Speed, measured as llama-bench measures it.

    Plan ── cases ──▶ Case, … ── measure(session, …) ──▶ Row, …

pp  prefill of N tokens, logits of the last one only
tg  N forward passes of one token each, every one with its logits
depth  tokens in the KV cache before the clock starts: put there once, rolled back to afterwards.
       At depth 0 a test starts from an empty cache.

Tokens are random and nothing is sampled, as in test_prompt and test_gen of llama.cpp's
tools/llama-bench/llama-bench.cpp: speed does not depend on which tokens they are. One warm-up
comes before: the whole prompt for pp, one token for tg.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from edgellm.bundle.manifest import MANIFEST_NAME, Shape
from edgellm.device import detect, memory
from edgellm.errors import ContextFull, UsageError
from edgellm.runtime import local
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import Float32, Forward, prefill
from edgellm.runtime.opened import OpenedBundle, open_folder
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session

Clock = Callable[[], float]


class Measured(Forward, Protocol):
    """What is measured of a session."""

    def new_cache(self, capacity_tokens: int, /) -> KVCache: ...
    def filler(self, tokens: int, /) -> Forward | None: ...


# Any number: it makes runs feed the same tokens.
SEED = 0
# No model has a longer context; a larger number is a typing error.
TOKENS_LIMIT = 1 << 24


@dataclass(frozen=True, slots=True)
class Case:
    """One test: `tokens` prefilled ("pp") or decoded ("tg") after `depth` others."""

    kind: Literal["pp", "tg"]
    tokens: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind}{self.tokens}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: every length at every depth, `repetitions` times. A length of 0 is none."""

    prompt_tokens: tuple[int, ...] = (512,)
    decode_tokens: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "decode_tokens", "depths"):
            for tokens in getattr(self, name):
                if not 0 <= tokens <= TOKENS_LIMIT:
                    raise UsageError(f"{name} must be in [0, {TOKENS_LIMIT}], got {tokens}")
        if self.repetitions < 1:
            raise UsageError(f"repetitions must be 1 or more, got {self.repetitions}")
        if not self.cases():
            raise UsageError("nothing to measure: give a prompt or a decode length of 1 or more")

    def cases(self) -> tuple[Case, ...]:
        """The tests in llama-bench's order: by depth, prefill before decoding."""
        return tuple(
            case
            for depth in self.depths
            for case in (
                *(Case("pp", tokens, depth) for tokens in self.prompt_tokens),
                *(Case("tg", tokens, depth) for tokens in self.decode_tokens),
            )
            if case.tokens
        )

    @property
    def context_tokens(self) -> int:
        """The longest cache that a test needs."""
        return max(case.depth + case.tokens for case in self.cases())


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second: one sample for each repetition, in order."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def min(self) -> float:
        return min(self.samples)

    @property
    def max(self) -> float:
        return max(self.samples)

    @property
    def spread(self) -> float:
        """Half the distance from the slowest to the fastest sample."""
        return (self.max - self.min) / 2


@dataclass(frozen=True, slots=True)
class Row:
    case: Case
    tokens_per_s: Rate


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to be measured. `load_ms` is without fetching; `threads` is the real number."""

    bundle: OpenedBundle
    session: Session
    threads: int
    load_ms: float

    @property
    def bundle_sha256(self) -> str:
        """The manifest's: it holds the hashes of all other files."""
        manifest = (self.bundle.folder / MANIFEST_NAME).read_bytes()
        return hashlib.sha256(manifest).hexdigest()


def load(reference: str, plan: Plan, options: LoadOptions) -> Loaded:
    """The model with room for the whole plan.

    ContextFull and MemoryShort when it does not fit the model or this machine; else as
    runtime.local.load.
    """
    folder = local.find_folder(reference, options)
    threads = options.threads or detect.usable_cores()
    started = time.perf_counter()
    bundle = open_folder(folder)
    limit = bundle.manifest.shape.context_length
    if plan.context_tokens > limit:
        raise ContextFull(
            f"the longest test needs {plan.context_tokens} tokens and {bundle.manifest.name} "
            f"holds {limit}; choose smaller lengths or depths"
        )
    fast = bundle.prefill_graph is not None
    memory.check(bundle.plan(plan.context_tokens, fast_prefill=fast))
    session = local.open_session(bundle, replace(options, threads=threads))
    return Loaded(bundle, session, threads, (time.perf_counter() - started) * 1e3)


def first_token_ms(
    session: Measured, shape: Shape, plan: Plan, clock: Clock = time.perf_counter
) -> float:
    """Milliseconds to the first token of the first prompt, on a session that has done nothing yet.

    A plan without prompts has one of one token. The token is the likeliest.
    """
    ids = random_ids(shape, next((n for n in plan.prompt_tokens if n), 1))
    started = clock()
    _prefill(session, session.new_cache(len(ids)), ids).argmax()
    return (clock() - started) * 1e3


def measure(
    session: Measured, shape: Shape, plan: Plan, clock: Clock = time.perf_counter
) -> Iterator[Row]:
    """A row for each case of the plan, as soon as it is measured."""
    for case in plan.cases():
        yield Row(case, Rate(tuple(_samples(session, shape, case, plan.repetitions, clock))))


def _samples(
    session: Measured, shape: Shape, case: Case, repetitions: int, clock: Clock
) -> Iterator[float]:
    cache = session.new_cache(case.depth + case.tokens)
    before, ids = _split(random_ids(shape, case.depth + case.tokens), case.depth)
    step = _prefill if case.kind == "pp" else _decode
    if before:
        _prefill(session, cache, before)
    step(session, cache, ids if case.kind == "pp" else ids[:1])
    for _ in range(repetitions):
        _roll_back(cache, before)
        started = clock()
        step(session, cache, ids)
        yield case.tokens / (clock() - started)


def _prefill(session: Measured, cache: KVCache, ids: Sequence[int]) -> Float32:
    return prefill(session, cache, ids, session.filler(len(ids)))


def _decode(session: Measured, cache: KVCache, ids: Sequence[int]) -> None:
    for token in ids:
        session.forward([token], [0], cache)


def _roll_back(cache: KVCache, before: Sequence[int]) -> None:
    """The cache holds `before` and nothing else."""
    cache.keep_common([*before, -1])


def _split(ids: list[int], at: int) -> tuple[list[int], list[int]]:
    return ids[:at], ids[at:]


def random_ids(shape: Shape, count: int) -> list[int]:
    """Seeded token ids, equally likely over the vocabulary."""
    ids: list[int] = np.random.default_rng(SEED).integers(shape.vocab_size, size=count).tolist()
    return ids
