"""The self-check of an export: does the finished bundle compute what the checkpoint means?

file      the bytes on disk are those that were written
weights   every tensor read back from the data file against the checkpoint (sources)
logits    the native graph in ONNX Runtime against the numpy forward pass on the same weights,
          with float32 activations (a tight limit) and with int8 ones (what they cost is reported)
quality   the native graph as users run it against numpy on the checkpoint's float weights: mean KL
          and top-1 agreement, within the recipe's limits (fidelity)
cache     prefill in one piece against chunks, single tokens and a rolled back cache
turns     a second question over the first one's cache against the whole conversation at once
portable  the graph for other runtimes against the native one
text      tokenizer round trip, chat template

A check that fails raises SelfCheckFailed, and nothing is published. The only module of the
exporter that runs a model: it must be the session that users run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.bundle import template, tokenizer
from edgellm.bundle.manifest import Shape
from edgellm.errors import UsageError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm.stream import Message
from edgellm_export import fidelity, reference
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checks import SelfCheckFailed, within
from edgellm_export.data import DataFile
from edgellm_export.progress import Notice, Steps
from edgellm_export.recipe import Recipe
from edgellm_export.sources import CheckedSources
from edgellm_export.store import Place, StoredWeights
from edgellm_export.weights import Float32

# The checks of the graphs need no more; of these the last SINGLE are fed one at a time.
TOKENS = 40
SINGLE = 8
QUESTIONS = ("Hello", "Why is the sky blue?")
ANSWER = "Hello! How can I help you today?"
# Largest difference of a logit relative to the largest logit, float32 activations: sums in another
# order. Measured on SmolLM2-135M: 2e-6 with float32 weights, 5e-6 with the GGUF's own blocks.
LIMIT = 1e-3
# Mean KL that int8 activations may cost. Measured on SmolLM2-135M: 0.004, where its layers have 2
# bits 0.09; a wrong graph: > 1.
ACTIVATIONS_KL_LIMIT = 0.25


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; errors relative to the largest logit, KL in nats, both per token."""

    tokens: int
    tensors: int
    exact_tensors: int
    weights_rms_error: float
    logits_error_float32: float
    kl_int8_activations: float
    top1_int8_activations: float
    cache_error: float
    turns_error: float
    portable_error: float
    text_tokens: int
    text_kl: float
    text_top1: float
    text_sure_tokens: int
    text_sure_top1: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle that is complete but for its manifest. `exact_graph` computes in float32."""

    folder: Path
    native: Path
    portable: Path
    exact_graph: Path
    shape: Shape
    data: DataFile
    stored: StoredWeights
    places: Mapping[str, Place]
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told, and how much of the work is done."""

    notice: Notice
    steps: Steps


def check(
    candidate: Candidate, checkpoint: Checkpoint, text: Sequence[int] | None, watch: Watch
) -> Report:
    """The report of all checks; SelfCheckFailed names the one that failed and by how much.

    Quality is measured on the ids of `text`, None for those of the sample that comes along.
    """
    shape = candidate.shape
    _check_file(candidate.data)
    own = _check_text(candidate)
    count = fidelity.token_count(shape.vocab_size, shape.context_length)
    long = list(own if text is None else text)[:count]
    ids = long[:TOKENS]
    sources, floats, expected = _references(candidate, checkpoint, long, watch.steps)
    exact = _check_exact(candidate, ids, expected, watch.notice)
    session = _session(candidate.native, shape)
    fast = _all_rows(session, shape, ids)
    activations = fidelity.measure(expected, fast)
    within("logits with int8 activations (KL)", activations.kl, ACTIVATIONS_KL_LIMIT)
    portable = _portable(candidate.portable, shape, ids)
    scale = float(np.abs(expected).max())
    portable_error = within("portable graph", np.abs(portable - fast).max() / scale, LIMIT)
    quality = fidelity.measure(floats, _all_rows(session, shape, long))
    quality.check(candidate.recipe)
    return Report(
        tokens=len(ids),
        tensors=len(candidate.places),
        exact_tensors=sources.kept,
        weights_rms_error=sources.rms_error,
        kl_int8_activations=activations.kl,
        top1_int8_activations=activations.top1,
        portable_error=portable_error,
        text_tokens=quality.tokens,
        text_kl=quality.kl,
        text_top1=quality.top1,
        text_sure_tokens=quality.sure_tokens,
        text_sure_top1=quality.sure_top1,
        **exact,
    )


def _references(
    candidate: Candidate, checkpoint: Checkpoint, ids: Sequence[int], steps: Steps
) -> tuple[CheckedSources, Float32, Float32]:
    """What was found of the weights; numpy's logits on the checkpoint's float weights, and of the
    first TOKENS on the stored ones."""
    config, count = checkpoint.config, len(candidate.places)
    with steps("checking weights", count) as show:
        sources = CheckedSources(checkpoint, candidate.stored, candidate.places, show)
        floats = reference.forward(config, sources, ids)  # (T, V)
        sources.finish()
    if sources.kept == count:
        # All are the checkpoint's own: one pass is both.
        return sources, floats, floats[:TOKENS]
    return sources, floats, reference.forward(config, candidate.stored, ids[:TOKENS])


def _check_exact(
    candidate: Candidate, ids: Sequence[int], expected: Float32, notice: Notice
) -> dict[str, float]:
    """The errors of what must be equal: logits, cache, turns. With float32 activations: the odd
    last bit, rounded to int8, is no last bit any more."""
    shape, scale = candidate.shape, float(np.abs(expected).max())
    session = _session(candidate.exact_graph, shape)
    float32 = _all_rows(session, shape, ids)
    logits = within("logits", np.abs(float32 - expected).max() / scale, LIMIT)
    pieces = _in_pieces(session, shape, ids)
    cache = within("KV cache", np.abs(pieces - float32).max() / scale, LIMIT)
    first, second = _turns(candidate, notice)
    again, whole = _second_turn(session, shape, first, second)
    turns = within("a second turn's logits", np.abs(again - whole).max() / scale, LIMIT)
    return {"logits_error_float32": logits, "cache_error": cache, "turns_error": turns}


def _check_file(data: DataFile) -> None:
    with data.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != data.sha256:
        raise SelfCheckFailed(
            f"the bundle failed its self-check: {data.path.name} on disk is not what was written; "
            "nothing was published; check the disk and try again"
        )


def _check_text(candidate: Candidate) -> list[int]:
    """The ids of the sample, as a prompt; its first line has come back as the same text."""
    words, text = tokenizer.read(candidate.folder), fidelity.sample()
    line = text.partition("\n")[0]
    if words.decode(words.encode(line)).strip() != line:
        raise SelfCheckFailed("the bundle failed its self-check: the tokenizer changes plain text")
    ids = words.encode(text, special=False, wrap=True)
    if max(ids) >= candidate.shape.vocab_size:
        raise SelfCheckFailed(
            f"the bundle failed its self-check: the tokenizer gives id {max(ids)}, the model has "
            f"{candidate.shape.vocab_size}"
        )
    return ids


def _turns(candidate: Candidate, notice: Notice) -> tuple[list[int], list[int]]:
    """The ids of a first turn with its answer, and of the conversation up to a second question."""
    words, chat = tokenizer.read(candidate.folder), template.read(candidate.folder)
    first, second = QUESTIONS
    talk = [Message("user", first), Message("assistant", ANSWER), Message("user", second)]
    if chat is None:
        notice("this model has no chat template: it takes raw prompts only")
        texts = [first, f"{first}\n{ANSWER}\n{second}"]
    else:
        texts = [chat.render(talk[:1]), ""]
        if first not in texts[0]:
            raise SelfCheckFailed(
                "the bundle failed its self-check: the chat template drops what the user says"
            )
        try:
            texts[1] = chat.render(talk)
        except UsageError as error:
            notice(f"only single questions can be asked: {error}")
            texts[1] = f"{texts[0]}{ANSWER}\n{second}"
        if second not in texts[1]:
            raise SelfCheckFailed(
                "the bundle failed its self-check: the chat template drops the second question"
            )
    one, two = (words.encode(text)[: candidate.shape.context_length - SINGLE] for text in texts)
    return one + words.encode(ANSWER)[:SINGLE], two


def _second_turn(
    session: Session, shape: Shape, first: Sequence[int], second: Sequence[int]
) -> tuple[Float32, Float32]:
    """Logits of the new tokens in `second`, over the cache that `first` left and from scratch."""
    cache = KVCache(shape, len(second))
    session.forward(first, [], cache)
    kept = cache.keep_common(second)
    again = session.forward(second[kept:], range(len(second) - kept), cache).copy()
    return again, _all_rows(session, shape, second)[kept:]


def _session(graph: Path, shape: Shape) -> Session:
    return Session(graph, shape, LoadOptions())


def _all_rows(session: Session, shape: Shape, ids: Sequence[int]) -> Float32:
    """Logits (T, V) from an empty cache."""
    return session.forward(ids, range(len(ids)), KVCache(shape, len(ids))).copy()


def _in_pieces(session: Session, shape: Shape, ids: Sequence[int]) -> Float32:
    """The same (T, V): a chunk, a wrong turn that is rolled back, a chunk, single tokens."""
    cache = KVCache(shape, len(ids))
    half, last = len(ids) // 2, len(ids) - SINGLE
    rows = [session.forward(ids[:half], range(half), cache).copy()]
    wrong = (ids[half] + 1) % shape.vocab_size
    session.forward([wrong] * 3, [], cache)
    cache.keep_common(ids)
    rows.append(session.forward(ids[half:last], range(last - half), cache).copy())
    for token in ids[last:]:
        rows.append(session.forward([token], [0], cache).copy())
    return np.concatenate(rows)


def _portable(graph: Path, shape: Shape, ids: Sequence[int]) -> Float32:
    """Logits (T, V) of the portable graph, run as any other program would."""
    ort = load_onnxruntime()
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), np.float32)
    feed = {name.name: empty for name in session.get_inputs()}
    feed["input_ids"] = np.array([ids], np.int64)
    feed["attention_mask"] = np.ones((1, len(ids)), np.int64)
    logits: Float32 = session.run(["logits"], feed)[0][0]
    return logits
