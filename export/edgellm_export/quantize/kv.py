"""An integer KV cache: the steps of keys and values from calibration text, and what a cache costs.

Text is a file or the model's own words. Its last window is not calibrated on: on it the model is
compared with itself on a float32 cache.

A key is turned by RoPE before it is stored, so what a channel holds at position 10,000 may not
occur in a short text. The length of the pair that is turned together is the same everywhere:
steps come from that, which costs nothing (SmolLM2-135M on the GPL: KL 0.0039 with and without).
Shapes: T tokens, K kv heads, N head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle.manifest import Shape
from edgellm.errors import EdgellmError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm_export import fidelity, io
from edgellm_export.drawing import Drawn, Model
from edgellm_export.graph import FAST, Graph
from edgellm_export.kv import FLOAT32_KV, INT8_MAX, KVDtype, KVType
from edgellm_export.quantize import selftext
from edgellm_export.quantize.capture import Clock, Ids, Notice, empty_cache, open_graph
from edgellm_export.weights import Float32

WINDOW_TOKENS = 512
# Windows of text for int8: the last measures, the others calibrate. float16 needs only the last.
WINDOWS = 5
# Tokens at once where the cost is measured, so that most of the cache is read back.
CHUNK_TOKENS = 64
# Mean KL that a cache may cost. Measured on SmolLM2-135M: float16 0.000002, int8 0.003.
KL_LIMIT = 0.05
# A channel that is always zero still needs a step above zero.
SMALLEST_STEP = 1e-8


@dataclass(frozen=True, slots=True)
class Chosen:
    """The kind of cache, and the text to measure it on (none for float32, which costs nothing)."""

    kind: KVType
    ids: Ids | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cache type changes on `tokens` that no scale has seen: mean KL in nats per token, and
    how often the likeliest token stays."""

    tokens: int
    kl: float
    top1: float


def choose(model: Model, dtype: KVDtype, folder: Path, words: str | None, notice: Notice) -> Chosen:
    """The cache of that type for `model`; `folder` has its tokenizer, `words` None: its own."""
    if dtype == "float32":
        return Chosen(FLOAT32_KV)
    ids = _text(model, folder, words, WINDOWS if dtype == "int8" else 1, notice)
    return Chosen(int8(model, ids, notice) if dtype == "int8" else KVType(dtype), ids)


def record(chosen: Chosen, drawn: Drawn, shape: Shape) -> dict[str, Any]:
    """What the self-check says of the cache: its type and what it changes."""
    if chosen.ids is None:
        return {}
    found = cost(drawn.cached, drawn.exact, shape, chosen.ids)
    changes = {"kl": float(f"{found.kl:.4g}"), "top1": float(f"{found.top1:.4g}")}
    return {"kv_cache": {"dtype": shape.kv_dtype, **changes, "tokens": found.tokens}}


def int8(model: Model, ids: Ids, notice: Notice) -> KVType:
    """An int8 cache whose steps cover all windows of `ids` but the last.

    EdgellmError when keys or values are not finite.
    """
    graph = model.data.with_name("ranges.onnx")
    widths = _rotary_widths(_draw_cache(model, graph))
    try:
        largest = _largest(graph, model.shape, ids[:-1] if len(ids) > 1 else ids, widths, notice)
    finally:
        graph.unlink()
    if not all(np.isfinite(found).all() for found in largest):
        raise EdgellmError("keys or values are not finite on the calibration text; use --kv fp32")
    steps = [np.maximum(found / INT8_MAX, SMALLEST_STEP).astype(np.float32) for found in largest]
    return KVType("int8", tuple(zip(steps[0::2], steps[1::2], strict=True)))


def cost(cached: Path, exact: Path, shape: Shape, ids: Ids) -> Cost:
    """What the cache of `cached` (`shape.kv_dtype`) costs on the last window of `ids`; `exact` is
    the same graph on a float32 cache. EdgellmError when it is more than a cache may cost.

    Both with float32 activations: int8 ones round anew at every small change, and that would be
    measured instead (SmolLM2-135M: a float16 cache would seem to cost a KL of 0.006).
    """
    wanted = _logits(exact, replace(shape, kv_dtype="float32"), ids[-1])
    found = fidelity.measure(wanted, _logits(cached, shape, ids[-1]))
    if not found.kl <= KL_LIMIT:
        raise EdgellmError(
            f"the {shape.kv_dtype} KV cache changes this model by a mean KL of {found.kl:.3g}, "
            f"allowed is {KL_LIMIT:g}; nothing was published; use --kv fp32"
        )
    return Cost(found.tokens, found.kl, found.top1)


def _text(model: Model, folder: Path, words: str | None, windows: int, notice: Notice) -> Ids:
    """Ids (windows, T) of `words`, or in the model's own."""
    length = min(WINDOW_TOKENS, model.shape.context_length)
    if words is not None:
        return selftext.windows_of(folder, words, windows * length, length)
    graph = model.data.with_name("write.onnx")
    model.built(graph, io.portable, FAST).save(graph)
    start = selftext.openings(folder, selftext.ends(folder))
    try:
        return selftext.generate(graph, model.shape, start, (windows, length), 0, notice)
    finally:
        graph.unlink()


def _draw_cache(model: Model, path: Path) -> Graph:
    """Writes the graph whose outputs are the cache alone."""
    g = model.built(path, io.portable, FAST)
    g.keep_only([value for node in _attentions(g) for value in node.outputs[1:3]])
    g.save(path)
    return g


def _attentions(g: Graph) -> list[Any]:
    return [node for node in g.nodes if node.op_type == "GroupQueryAttention"]


def _rotary_widths(g: Graph) -> list[int]:
    """How many numbers of a head are turned, layer by layer; 0 without RoPE."""
    widths = []
    for node in _attentions(g):
        table = node.inputs[7] if len(node.inputs) > 7 else None
        widths.append(0 if table is None else 2 * int(table.shape[1]))
    return widths


def _largest(
    graph: Path, shape: Shape, ids: Ids, widths: Sequence[int], notice: Notice
) -> list[Float32]:
    """The largest magnitudes (K, N) of keys and values in turn, layer by layer."""
    session = open_graph(graph)
    feed = empty_cache(session, shape)
    found = [np.zeros((shape.num_key_value_heads, shape.head_dim), np.float32) for _ in feed]
    clock = Clock(len(ids), notice, "measuring keys and values")
    for row in ids:
        feed["input_ids"] = row[None]
        feed["attention_mask"] = np.ones((1, len(row)), np.int64)
        for i, stored in enumerate(session.run(None, feed)):
            width = 0 if i % 2 else widths[i // 2]
            np.maximum(found[i], _magnitude(stored[0], width).max(axis=1), out=found[i])
        clock.tick()
    return found


def _magnitude(stored: Float32, width: int) -> Float32:
    """|x| of (K, T, N); for the first `width` of N the length of the pair that RoPE turns."""
    magnitude: Float32 = np.abs(stored)
    half = width // 2
    pair = np.hypot(stored[..., :half], stored[..., half:width])
    magnitude[..., :half] = magnitude[..., half:width] = pair
    return magnitude


def _logits(graph: Path, shape: Shape, ids: NDArray[np.int64]) -> Float32:
    """Logits (T, V), fed in chunks: what a chunk wrote, the next one reads back."""
    session = Session(graph, shape, LoadOptions())
    cache = KVCache(shape, len(ids))
    parts = []
    for start in range(0, len(ids), CHUNK_TOKENS):
        chunk = ids[start : start + CHUNK_TOKENS].tolist()
        parts.append(session.forward(chunk, range(len(chunk)), cache).copy())
    return np.concatenate(parts)
