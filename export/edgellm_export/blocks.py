"""The parts that decoder architectures are made of: stored weights, and the nodes that use them.

Shapes: B batch, T new tokens, S cached tokens, H query heads, K kv heads, N head width, D model
width, V vocabulary.
Operators with no other source are ONNX Runtime's, docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgellm_export import static
from edgellm_export.data import DataFile, Stored
from edgellm_export.graph import FLOAT, FLOAT16, INT8, Graph, Value


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention sizes: H query heads and K kv heads of width N."""

    query: int
    kv: int
    width: int


@dataclass(frozen=True, slots=True)
class Scores:
    """How queries and keys become attention weights.

    `scale` multiplies their product, None: 1 / sqrt(N). `window`: how many positions a token sees,
    itself among them, None: all. `softcap`: scores become softcap * tanh(score / softcap).
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None


PLAIN = Scores()


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary tables, (context, R / 2) each: the first R of N numbers of a head are turned."""

    cos: Stored
    sin: Stored


@dataclass(frozen=True, slots=True)
class Position:
    """Where the new tokens stand: S + T - 1 of each row (int32, B), and S + T (int32 scalar).

    `rows` of the rotary table for each token (int64, B, T); None: its position.
    """

    last: Value
    total: Value
    rows: Value | None = None


def store_rope(
    data: DataFile,
    frequencies: NDArray[np.float64],
    context: int,
    name: str = "rope",
    factor: float = 1.0,
) -> Rope:
    """Tables of cos and sin, times `factor`, for `frequencies` (R / 2,) in radians a position."""
    angles = np.outer(np.arange(context), frequencies)
    return Rope(
        data.append(f"{name}.cos", (factor * np.cos(angles)).astype(np.float32)),
        data.append(f"{name}.sin", (factor * np.sin(angles)).astype(np.float32)),
    )


def joined_ropes(
    data: DataFile, tables: Sequence[tuple[NDArray[np.float64], int]], factor: float
) -> Rope:
    """One table after another: frequencies (R / 2,) and how many positions each is for."""
    angles = np.concatenate([np.outer(np.arange(n), turns) for turns, n in tables])
    return Rope(
        data.append("rope.cos", (factor * np.cos(angles)).astype(np.float32)),
        data.append("rope.sin", (factor * np.sin(angles)).astype(np.float32)),
    )


def rms_norm(g: Graph, x: Value, weight: Stored, eps: float) -> Value:
    x = g.to(x, FLOAT)
    if g.static:
        return static.rms_norm(g, x, weight, eps)
    return g.op("SimplifiedLayerNormalization", x, g.weight(weight), axis=-1, epsilon=eps)


def add_rms_norm(
    g: Graph, x: Value, residual: Value, weight: Stored, eps: float
) -> tuple[Value, Value]:
    """The normalised sum of x and residual, and the sum itself: the new residual."""
    x, residual = g.to(x, FLOAT), g.to(residual, FLOAT)
    if g.static:
        return static.add_rms_norm(g, x, residual, weight, eps)
    normalised, mean, deviation, total = g.ops(
        "SkipSimplifiedLayerNormalization", x, residual, g.weight(weight), outputs=4, epsilon=eps
    )
    g.omit(mean, deviation)
    return normalised, total


def head_norms(
    g: Graph, qkv: Value, heads: Heads, norms: tuple[Stored, Stored], eps: float
) -> tuple[Value, Value, Value]:
    """Packed qkv apart, every query and key head normalised with its weights (N,).

    GroupQueryAttention has norms of its own, but not on the CPU.
    """
    q, k, v = split_heads(g, qkv, heads)
    normed = []
    for part, weight in zip((q, k), norms, strict=True):
        apart = g.op("Reshape", part, _ints(g, 0, 0, -1, heads.width))
        normed.append(g.op("Reshape", rms_norm(g, apart, weight, eps), _ints(g, 0, 0, -1)))
    return normed[0], normed[1], v


def split_heads(g: Graph, qkv: Value, heads: Heads) -> Sequence[Value]:
    """Packed qkv apart: (B, T, H * N), and twice (B, T, K * N)."""
    widths = [heads.query * heads.width, heads.kv * heads.width, heads.kv * heads.width]
    return g.ops("Split", qkv, _ints(g, *widths), outputs=3, axis=-1)


def attention(
    g: Graph,
    qkv: Value | Sequence[Value],
    layer: int,
    heads: Heads,
    rope: Rope | None,
    position: Position,
    scores: Scores = PLAIN,
) -> Value:
    """Causal grouped-query attention over the cache of `layer`, which becomes input and output.

    qkv (B, T, (H + 2 K) * N) holds the packed heads of the new tokens, or three values each their
    own; without `rope` they are not turned. Returns (B, T, H * N).
    """
    if g.static:
        parts = split_heads(g, qkv, heads) if isinstance(qkv, Value) else qkv
        return static.attention(g, g.static, parts, layer, heads, rope, scores)
    stored = _KV_TYPES[g.kv.dtype]
    shape = ("batch_size", heads.kv, "past_sequence_length", heads.width)
    past = [g.input(f"past_key_values.{layer}.{part}", stored, shape) for part in ("key", "value")]
    new = (qkv, None, None) if isinstance(qkv, Value) else qkv
    # The kernel stores float16 only when it also computes with it.
    computed = FLOAT16 if stored == FLOAT16 else g.activations
    root, scores = _unit_scores(g, heads, rope, scores)
    turned = [] if rope is None else _rope_inputs(g, rope, position, computed, root)
    y, key, value = g.ops(
        "GroupQueryAttention",
        *(part and g.to(part, computed) for part in new),
        *past,
        position.last,
        position.total,
        *turned,
        *_kv_scales(g, layer, len(turned)),
        outputs=3,
        num_heads=heads.query,
        kv_num_heads=heads.kv,
        do_rotary=1 if rope else 0,
        **_score_attributes(scores),
        **_kv_attributes(g),
    )
    shape = ("batch_size", heads.kv, "total_sequence_length", heads.width)
    g.output(f"present.{layer}.key", key, stored, shape)
    g.output(f"present.{layer}.value", value, stored, shape)
    return g.to(y, g.activations)


def _unit_scores(g: Graph, heads: Heads, rope: Rope | None, scores: Scores) -> tuple[float, Scores]:
    """What the rotary tables are multiplied with so that scores need no scale, and such scores.

    MLAS multiplies one row by a matrix with a kernel of its own, but only by a factor of 1
    (sgemm.cpp, MlasSgemmOperation): attention of one token over 500 took half the time. Not where
    tables turn a part of a head only, or the cache has steps that fit keys of the usual size.
    """
    whole = rope is not None and 2 * rope.cos.shape[1] == heads.width
    if not (g.unit_scores and whole and g.kv.dtype == "float32"):
        return 1.0, scores
    scale = scores.scale or 1 / math.sqrt(heads.width)
    return math.sqrt(scale), replace(scores, scale=1.0)


def _rope_inputs(
    g: Graph, rope: Rope, position: Position, dtype: ir.DataType, factor: float
) -> list[Value]:
    """The tables times `factor`, a product of constants that is made once, at load."""
    tables = [_table(g, table, dtype, factor) for table in (rope.cos, rope.sin)]
    return tables if position.rows is None else [*tables, position.rows]


def _table(g: Graph, stored: Stored, dtype: ir.DataType, factor: float) -> Value:
    if factor == 1:
        return g.to(g.weight(stored), dtype)
    made = g.once((stored.name, factor), lambda: scaled(g, g.weight(stored), factor))
    return g.to(made, dtype)


_KV_TYPES = {"float32": FLOAT, "float16": FLOAT16, "int8": INT8}


def _kv_scales(g: Graph, layer: int, before: int) -> Sequence[Value | None]:
    """What an integer cache needs, as inputs behind that many of the five optional ones before."""
    if not g.kv.scales:
        return ()
    # One scale for each channel of each head, broadcast over batch and positions.
    steps = [g.constant(scale[None, :, None, :]) for scale in g.kv.scales[layer]]
    return (*[None] * (5 - before), *steps)


def _kv_attributes(g: Graph) -> dict[str, int | str]:
    if not g.kv.scales:
        return {}
    kind = "PER_CHANNEL"
    return {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}


def _score_attributes(scores: Scores) -> dict[str, float]:
    named = {
        "scale": scores.scale,
        "local_window_size": scores.window,
        "softcap": scores.softcap,
    }
    return {name: value for name, value in named.items() if value is not None}


def scaled(g: Graph, x: Value, factor: float) -> Value:
    constant = g.constant(np.array(factor, np.float32))
    return g.op("Mul", x, g.to(constant, g.dtype(x)))


def softcapped(g: Graph, x: Value, cap: float | None) -> Value:
    """cap * tanh(x / cap); x itself without a cap."""
    return x if cap is None else scaled(g, g.op("Tanh", scaled(g, x, 1 / cap)), cap)


def _ints(g: Graph, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))
