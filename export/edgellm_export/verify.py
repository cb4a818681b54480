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
from dataclasses import asdict, dataclass, replace
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
from edgellm_export.data import DataFile
from edgellm_export.recipe import Float, Keep
from edgellm_export.store import Place, StoredWeights
from edgellm_export.weights import Blocks, Float32, to_float32

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
# Largest difference, relative to the largest logit, of a cache that was read back in pieces. A last
# bit that differs may round to the next code, and that moves later layers. Measured on
# SmolLM2-135M: float16 0.0006, int8 0.009; with one wrong position: 0.4.
CACHE_LIMITS = {"float32": LIMIT, "float16": 0.01, "int8": 0.05}
# Exact import: float32 rounding of a block's range (the integers are compared as they are).
EXACT_LIMIT = 1e-6
# Relative RMS error of a quantized tensor. Gaussian weights in 4 bits: 0.08; half a step everywhere
# in blocks of 64 with an outlier on either side: 0.4; another tensor's weights: 1.4.
ROUNDING_LIMIT = 0.5
TINY = float(np.finfo(np.float32).tiny)


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

    def to_json(self, activations: str = "int8") -> dict[str, Any]:
        """What the manifest records; `activations` is what the graph rounds them to."""
        return {
            name.replace("int8", activations): float(f"{value:.4g}")
            if isinstance(value, float)
            else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle that is complete but for its manifest.

    `exact_graph` computes in float32; so does `cached_graph`, with the bundle's kind of cache.
    `plain_graph` is `native` on a float32 cache, or itself. `activations` is what it rounds to.
    """

    folder: Path
    native: Path
    portable: Path
    exact_graph: Path
    cached_graph: Path
    plain_graph: Path
    activations: str
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
    plain = replace(candidate.shape, kv_dtype="float32")
    float32 = _all_rows(_session(candidate.exact_graph, plain), plain, ids)
    error = _within("logits", np.abs(float32 - expected).max() / scale, LIMIT)
    cache = _check_cache(candidate, ids, scale)
    if candidate.plain_graph == candidate.native:
        plain = candidate.shape
    fast = _all_rows(_session(candidate.plain_graph, plain), plain, ids)
    kl, top1 = distance(expected, fast)
    _within(f"logits with {candidate.activations} activations (KL)", kl, ACTIVATIONS_KL_LIMIT)
    portable_error = _check_portable(candidate, ids, scale)
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


def _check_cache(candidate: Candidate, ids: Sequence[int], scale: float) -> float:
    """How much pieces, a rolled back turn among them, differ from one pass."""
    shape = candidate.shape
    session = _session(candidate.cached_graph, shape)
    whole, pieces = _all_rows(session, shape, ids), _in_pieces(session, shape, ids)
    error = np.abs(pieces - whole).max() / scale
    return _within(f"{shape.kv_dtype} KV cache", error, CACHE_LIMITS[shape.kv_dtype])


def _check_portable(candidate: Candidate, ids: Sequence[int], scale: float) -> float:
    """How much the graph for other programs differs from ours."""
    shape = candidate.shape
    ours = _all_rows(_session(candidate.native, shape), shape, ids)
    error = np.abs(_portable(candidate.portable, shape, ids) - ours).max() / scale
    return _within("portable graph", error, CACHE_LIMITS[shape.kv_dtype])


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
        a, b = to_float32(source), to_float32(stored)
        if place.added:
            a = a + np.float32(place.added)
        match place.treatment:
            case Keep():
                if isinstance(source, Blocks) and isinstance(stored, Blocks):
                    same = np.array_equal(source.packed, stored.packed)
                    _within(f"the integers of {name}", 0.0 if same else 1.0, 0.0)
                _within(name, _spread(a, b), EXACT_LIMIT)
                kept += 1
                continue
            case Float(dtype):
                _within(name, _spread(a.astype(dtype).astype(np.float32), b), EXACT_LIMIT)
        error, power = float(((a - b) ** 2).sum()), float((a**2).sum())
        _within(name, float(np.sqrt(error / max(power, TINY))), ROUNDING_LIMIT)
        wrong, total = wrong + error, total + power
    return kept, float(np.sqrt(wrong / total)) if total else 0.0


def _spread(expected: Float32, found: Float32) -> float:
    """The largest difference, relative to the range of the expected numbers."""
    spread = max(float(expected.max()) - float(expected.min()), TINY)
    return float(np.abs(expected - found).max()) / spread


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
    """The same (T, V), fed as a chunk, a wrong turn that is rolled back, and single tokens."""
    cache = KVCache(shape, len(ids))
    half = len(ids) // 2
    rows = [session.forward(ids[:half], range(half), cache).copy()]
    wrong = (ids[half] + 1) % shape.vocab_size
    session.forward([wrong] * 3, [], cache)
    cache.keep_common(ids)
    for token in ids[half:]:
        rows.append(session.forward([token], [0], cache).copy())
    return np.concatenate(rows)


def _portable(graph: Path, shape: Shape, ids: Sequence[int]) -> Float32:
    """Logits (T, V) of the portable graph, run as any other program would."""
    ort = load_onnxruntime()
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), shape.kv_dtype)
    feed = {name.name: empty for name in session.get_inputs()}
    feed["input_ids"] = np.array([ids], np.int64)
    feed["attention_mask"] = np.ones((1, len(ids)), np.int64)
    logits: Float32 = session.run(["logits"], feed)[0][0]
    return logits


def distance(expected: Float32, found: Float32) -> tuple[float, float]:
    """Mean KL(expected ‖ found) in nats, and how often both prefer the same token."""
    p, q = _log_softmax(expected), _log_softmax(found)
    kl = float((np.exp(p) * (p - q)).sum(axis=-1).mean())
    return kl, float((p.argmax(axis=-1) == q.argmax(axis=-1)).mean())


def _log_softmax(logits: Float32) -> Float32:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Float32 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
