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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.bundle.manifest import SHARED, Graph, Shape
from edgellm.runtime.concat import open_graph
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm_export import conversation, fidelity, reference
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checks import SelfCheckFailed, within
from edgellm_export.data import DataFile
from edgellm_export.drawing import Drawn
from edgellm_export.progress import Notice, Steps
from edgellm_export.recipe import Recipe
from edgellm_export.reference.parts import Weight
from edgellm_export.sources import CheckedSources
from edgellm_export.store import Place
from edgellm_export.stored import StoredWeights
from edgellm_export.weights import Float32

# The checks of the graphs need no more. Of these SINGLE are fed one at a time: a large model with
# float32 activations takes seconds for each.
TOKENS = 40
SINGLE = 2
# Logits (T, V) after each id, by the checkpoint's names of the weights.
Forward = Callable[[Weight, Sequence[int]], Float32]
# Largest difference of a logit relative to the largest logit, float32 activations: sums in another
# order. Measured on SmolLM2-135M: 2e-6 with float32 weights, 5e-6 with the GGUF's own blocks.
LIMIT = 1e-3
# Mean KL that int8 activations may cost. Measured on SmolLM2-135M: 0.004, where its layers have 2
# bits 0.09; a wrong graph: > 1.
ACTIVATIONS_KL_LIMIT = 0.25
# Largest difference, relative to the largest logit, of a cache that was read back in pieces. A last
# bit that differs may round to the next code, and that moves later layers. Measured on
# SmolLM2-135M: float16 0.0006, int8 0.009; with one wrong position: 0.4.
CACHE_LIMITS = {"float32": LIMIT, "float16": 0.01, "int8": 0.05}


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

    def to_json(self, activations: str) -> dict[str, Any]:
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

    `cache` is the graphs' kind of it; `forward` computes what they should where there is no numpy
    forward pass of the architecture.
    """

    folder: Path
    drawn: Drawn
    shape: Shape
    data: DataFile
    stored: StoredWeights
    places: Mapping[str, Place]
    recipe: Recipe
    cache: str = SHARED
    forward: Forward | None = None

    @property
    def activations(self) -> str:
        """What the graphs round them to."""
        kept = self.recipe.activations
        return "int8" if kept == "float32" else kept

    @property
    def plain_shape(self) -> Shape:
        """The same with a float32 cache."""
        return replace(self.shape, kv_dtype="float32")


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
    own = conversation.sample_ids(candidate.folder, shape)
    count = fidelity.token_count(shape.vocab_size, shape.context_length)
    long = list(own if text is None else text)[:count]
    ids = long[:TOKENS]
    sources, floats, expected = _references(candidate, checkpoint, long, watch.steps)
    exact, float32 = _check_exact(candidate, ids, expected, watch.notice)
    fast, found = _check_native(candidate, ids, long)
    (quality := fidelity.measure(floats, found)).check(candidate.recipe)
    portable_error = _check_portable(candidate, fast, float32, ids)
    if candidate.drawn.plain != candidate.drawn.native:
        fast = _all_rows(_session(candidate.drawn.plain, candidate, candidate.plain_shape), ids)
    activations = fidelity.measure(expected, fast)
    within(f"{candidate.activations} activations (KL)", activations.kl, ACTIVATIONS_KL_LIMIT)
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
    """What was found of the weights; the logits of the checkpoint's float weights, and of the
    first TOKENS those of the stored ones."""
    count = len(candidate.places)
    forward = candidate.forward or partial(reference.forward, checkpoint.config)
    with steps("checking weights", count) as show:
        sources = CheckedSources(checkpoint, candidate.stored, candidate.places, show)
        floats = forward(sources, ids)  # (T, V)
        sources.finish()
    if sources.kept == count and not candidate.shape.rope_switch:
        # All are the checkpoint's own, and what follows a token does not matter: one pass is both.
        return sources, floats, floats[:TOKENS]
    return sources, floats, forward(candidate.stored, ids[:TOKENS])


def _check_exact(
    candidate: Candidate, ids: Sequence[int], expected: Float32, notice: Notice
) -> tuple[dict[str, float], Float32]:
    """The errors of what must be equal: logits, cache, turns. With float32 activations: the odd
    last bit, rounded to int8, is no last bit any more. And the logits on the bundle's cache."""
    drawn, scale = candidate.drawn, float(np.abs(expected).max())
    session = _session(drawn.exact, candidate, candidate.plain_shape)
    float32 = _all_rows(session, ids)
    logits = within("logits", np.abs(float32 - expected).max() / scale, LIMIT)
    if drawn.cached != drawn.exact:
        del session  # never two models in memory
        session = _session(drawn.cached, candidate, candidate.shape)
        float32 = _all_rows(session, ids)
    dtype = candidate.shape.kv_dtype
    limit = CACHE_LIMITS[dtype]
    pieces = _in_pieces(session, ids)
    cache = within(f"{dtype} KV cache", np.abs(pieces - float32).max() / scale, limit)
    first, second = conversation.turns(candidate.folder, candidate.shape, notice)
    again, whole = _second_turn(session, first, second)
    turns = within("a second turn's logits", np.abs(again - whole).max() / scale, limit)
    errors = {"logits_error_float32": logits, "cache_error": cache, "turns_error": turns}
    return errors, float32


def _check_native(
    candidate: Candidate, ids: Sequence[int], long: Sequence[int]
) -> tuple[Float32, Float32]:
    """The logits that users get for both texts. The session ends here: float32 weights are in
    memory once for each that is open."""
    session = _session(candidate.drawn.native, candidate, candidate.shape)
    return _all_rows(session, ids), _all_rows(session, long)


def _check_portable(
    candidate: Candidate, fast: Float32, float32: Float32, ids: Sequence[int]
) -> float:
    """How much the graph for other programs differs from ours, whose logits are `fast`.

    Where both sum in another order int8 activations round apart: the graphs are compared with
    float32 ones then, and what is shipped must still say nearly the same.
    """
    drawn, shape = candidate.drawn, candidate.shape
    theirs = standard_logits(drawn.portable, shape, ids)
    if drawn.standard is None:
        ours = fast
    else:
        found = fidelity.measure(fast, theirs)
        within("portable graph's logits (KL)", found.kl, ACTIVATIONS_KL_LIMIT)
        theirs, ours = standard_logits(drawn.standard, shape, ids), float32
    error = np.abs(theirs - ours).max() / np.abs(ours).max()
    return within("portable graph", float(error), CACHE_LIMITS[shape.kv_dtype])


def _check_file(data: DataFile) -> None:
    with data.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != data.sha256:
        raise SelfCheckFailed(
            f"the bundle failed its self-check: {data.path.name} on disk is not what was written; "
            "nothing was published; check the disk and try again"
        )


def _second_turn(
    session: Session, first: Sequence[int], second: Sequence[int]
) -> tuple[Float32, Float32]:
    """Logits of the new tokens in `second`, over the cache that `first` left and from scratch."""
    cache = session.new_cache(len(second))
    session.forward(first, [], cache)
    kept = cache.keep_common(second)
    again = session.forward(second[kept:], range(len(second) - kept), cache).copy()
    return again, _all_rows(session, second)[kept:]


def _session(graph: Path, candidate: Candidate, shape: Shape) -> Session:
    described = Graph("native", graph.name, candidate.data.path.name, cache=candidate.cache)
    return open_graph(graph, described, shape, LoadOptions())


def _all_rows(session: Session, ids: Sequence[int]) -> Float32:
    """Logits (T, V) from an empty cache."""
    return session.forward(ids, range(len(ids)), session.new_cache(len(ids))).copy()


def _in_pieces(session: Session, ids: Sequence[int]) -> Float32:
    """The same (T, V): a chunk, a wrong turn that is rolled back, single tokens, a chunk."""
    cache = session.new_cache(len(ids))
    half = len(ids) // 2
    last = min(half + SINGLE, len(ids) - 1)
    rows = [session.forward(ids[:half], range(half), cache).copy()]
    wrong = (ids[half] + 1) % session.shape.vocab_size
    session.forward([wrong] * 3, [], cache)
    cache.keep_common(ids)
    for token in ids[half:last]:
        rows.append(session.forward([token], [0], cache).copy())
    rows.append(session.forward(ids[last:], range(len(ids) - last), cache).copy())
    return np.concatenate(rows)


def standard_logits(graph: Path, shape: Shape, ids: Sequence[int]) -> Float32:
    """Logits (T, V) of a graph with standard inputs, run as any other program would."""
    ort = load_onnxruntime()
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), shape.kv_dtype)
    feed: dict[str, Any] = {name.name: empty for name in session.get_inputs()}
    given = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
    }
    feed |= {name: value for name, value in given.items() if name in feed}
    logits: Float32 = session.run(["logits"], feed)[0][0]
    return logits
