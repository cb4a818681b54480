"""The self-check of an export: does the finished bundle compute what the checkpoint means?

file      the bytes on disk are those that were written
weights   every tensor read back from the data file against the checkpoint
logits    the native graph in ONNX Runtime against the numpy forward pass on the same weights,
          with float32 activations (a tight limit) and with int8 ones (what they cost is reported)
cache     prefill in one piece against chunks, single tokens and a rolled back cache
portable  the graph for other runtimes against the native one
text      tokenizer round trip, chat template

A check that fails raises SelfCheckFailed, and nothing is published. The only module of the
exporter that runs a model: it must be the session that users run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.bundle import template, tokenizer
from edgellm.bundle.manifest import Shape
from edgellm.errors import EdgellmError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm.stream import Message
from edgellm_export import reference
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.compare import compare
from edgellm_export.data import DataFile
from edgellm_export.recipe import Integer, Keep
from edgellm_export.store import Place, StoredWeights
from edgellm_export.weights import Blocks, Float32

TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1969, two people walked on the Moon; "
    "water boils at 100 °C at sea level. def add(a, b): return a + b"
)
TOKENS = 40
# Largest difference of a logit relative to the largest logit, float32 activations: sums in another
# order. Measured on SmolLM2-135M: 2e-6 with float32 weights, 5e-6 with the GGUF's own blocks.
LIMIT = 1e-3
# Mean KL that int8 activations may cost. Measured on SmolLM2-135M: 0.004; a wrong graph: > 1.
ACTIVATIONS_KL_LIMIT = 0.05
# Exact import: float32 rounding of a block's range (the integers are compared as they are).
EXACT_LIMIT = 1e-6
# Relative RMS error of a quantized tensor. Gaussian weights in 4 bits: 0.08; half a step everywhere
# in blocks of 64 with an outlier on either side: 0.4; another tensor's weights: 1.4.
ROUNDING_LIMIT = 0.5
# Fed one by one in the check of the cache: a large model with float32 activations takes seconds
# for each.
SINGLE_TOKENS = 2


class SelfCheckFailed(EdgellmError):
    """The bundle does not compute what the checkpoint means; it was not published."""


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
    portable_error: float

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


def check(candidate: Candidate, checkpoint: Checkpoint, notice: Callable[[str], None]) -> Report:
    """The report of all checks; SelfCheckFailed names the one that failed and by how much."""
    _check_file(candidate.data)
    exact, rms = _check_weights(candidate, checkpoint)
    ids = _check_text(candidate, notice)[:TOKENS]
    expected = reference.forward(checkpoint.config, candidate.stored, ids)  # (T, V)
    scale = float(np.abs(expected).max())
    # With float32 activations first: the odd last bit, rounded to int8, is no last bit any more.
    exact_session = _session(candidate.exact_graph, candidate.shape)
    float32 = _all_rows(exact_session, candidate.shape, ids)
    error = _within("logits", np.abs(float32 - expected).max() / scale, LIMIT)
    pieces = _in_pieces(exact_session, candidate.shape, ids)
    cache = _within("KV cache", np.abs(pieces - float32).max() / scale, LIMIT)
    del exact_session
    fast = _all_rows(_session(candidate.native, candidate.shape), candidate.shape, ids)
    kl, top1 = _distance(expected, fast)
    _within("logits with int8 activations (KL)", kl, ACTIVATIONS_KL_LIMIT)
    portable = _portable(candidate.portable, candidate.shape, ids)
    portable_error = _within("portable graph", np.abs(portable - fast).max() / scale, LIMIT)
    return Report(
        tokens=len(ids),
        tensors=len(candidate.places),
        exact_tensors=exact,
        weights_rms_error=rms,
        logits_error_float32=error,
        kl_int8_activations=kl,
        top1_int8_activations=top1,
        cache_error=cache,
        portable_error=portable_error,
    )


def _within(what: str, error: float, limit: float) -> float:
    if not error <= limit:  # also NaN
        raise SelfCheckFailed(
            f"the bundle failed its self-check: {what} differ by {error:.3g}, allowed is "
            f"{limit:g}; nothing was published; report this with the checkpoint's name"
        )
    return float(error)


def _check_file(data: DataFile) -> None:
    with data.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != data.sha256:
        raise SelfCheckFailed(
            f"the bundle failed its self-check: {data.path.name} on disk is not what was written; "
            "nothing was published; check the disk and try again"
        )


def _check_weights(candidate: Candidate, checkpoint: Checkpoint) -> tuple[int, float]:
    """How many tensors are kept as they are, and the relative RMS error of the others."""
    kept, wrong, total = 0, 0.0, 0.0
    for name, place in candidate.places.items():
        source, stored = checkpoint.weight(name), candidate.stored.weight(name)
        found = compare(source, stored, place)
        if not isinstance(place.treatment, Integer):
            _within(name, found.spread(), EXACT_LIMIT)
        if isinstance(place.treatment, Keep):
            if isinstance(source, Blocks) and isinstance(stored, Blocks):
                same = np.array_equal(source.packed, stored.packed)
                _within(f"the integers of {name}", 0.0 if same else 1.0, 0.0)
            kept += 1
            continue
        _within(name, found.relative_rms(), ROUNDING_LIMIT)
        wrong, total = wrong + found.error, total + found.power
    return kept, float(np.sqrt(wrong / total)) if total else 0.0


def _check_text(candidate: Candidate, notice: Callable[[str], None]) -> list[int]:
    """The ids of TEXT, having come back as the same text; the chat template renders."""
    words = tokenizer.read(candidate.folder)
    ids = words.encode(TEXT)
    if words.decode(ids).strip() != TEXT:
        raise SelfCheckFailed("the bundle failed its self-check: the tokenizer changes plain text")
    if max(ids) >= candidate.shape.vocab_size:
        raise SelfCheckFailed(
            f"the bundle failed its self-check: the tokenizer gives id {max(ids)}, the model has "
            f"{candidate.shape.vocab_size}"
        )
    chat = template.read(candidate.folder)
    if chat is None:
        notice("this model has no chat template: it takes raw prompts only")
    elif "Hello" not in chat.render([Message("user", "Hello")]):
        raise SelfCheckFailed(
            "the bundle failed its self-check: the chat template drops what the user says"
        )
    return ids


def _session(graph: Path, shape: Shape) -> Session:
    return Session(graph, shape, LoadOptions())


def _all_rows(session: Session, shape: Shape, ids: Sequence[int]) -> Float32:
    """Logits (T, V) from an empty cache."""
    return session.forward(ids, range(len(ids)), KVCache(shape, len(ids))).copy()


def _in_pieces(session: Session, shape: Shape, ids: Sequence[int]) -> Float32:
    """The same (T, V), fed as a chunk, a wrong turn that is rolled back, single tokens, a chunk."""
    cache = KVCache(shape, len(ids))
    half = len(ids) // 2
    singles = ids[half : half + SINGLE_TOKENS]
    rows = [session.forward(ids[:half], range(half), cache).copy()]
    wrong = (ids[half] + 1) % shape.vocab_size
    session.forward([wrong] * 3, [], cache)
    cache.keep_common(ids)
    for token in singles:
        rows.append(session.forward([token], [0], cache).copy())
    if rest := ids[half + len(singles) :]:
        rows.append(session.forward(rest, range(len(rest)), cache).copy())
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


def _distance(expected: Float32, found: Float32) -> tuple[float, float]:
    """Mean KL(expected ‖ found) in nats, and how often both prefer the same token."""
    p, q = _log_softmax(expected), _log_softmax(found)
    kl = float((np.exp(p) * (p - q)).sum(axis=-1).mean())
    return kl, float((p.argmax(axis=-1) == q.argmax(axis=-1)).mean())


def _log_softmax(logits: Float32) -> Float32:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Float32 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
