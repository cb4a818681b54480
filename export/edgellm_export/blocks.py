"""The parts that decoder architectures are made of: stored weights, and the nodes that use them.

Shapes: B batch, T new tokens, S cached tokens, H query heads, K kv heads, N head width, D model
width, V vocabulary.
Operators with no other source are ONNX Runtime's, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm_export.data import DataFile, Stored
from edgellm_export.graph import FLOAT, Graph, Value


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stored weight of shape (out, inner), dense or in blocks (see weights.Blocks).

    `bias` (out,) is added to what it computes.
    """

    shape: tuple[int, int]
    values: Stored
    bits: int = 0
    block_size: int = 0
    scales: Stored | None = None
    zero_points: Stored | None = None
    minima: Stored | None = None
    bias: Stored | None = None


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
    """Where the new tokens stand: S + T - 1 of each row (int32, B), and S + T (int32 scalar)."""

    last: Value
    total: Value


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


def embedding(g: Graph, ids: Value, table: Matrix) -> Value:
    """Rows of the table: ids (B, T) to (B, T, D)."""
    inner = table.shape[1]
    if not table.scales:
        return _float32(g, g.op("Gather", g.weight(table.values), ids), table.values)
    rows = g.op(
        "GatherBlockQuantized",
        g.weight(table.values, (table.shape[0], inner * table.bits // 8)),
        ids,
        _float32(g, g.weight(table.scales), table.scales),
        _explicit_zeros(g, table),
        bits=table.bits,
        block_size=table.block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    if not table.minima:
        return rows
    shift = g.op("Gather", _block_shift(g, table, table.minima.shape), ids)
    wide = g.op("Expand", g.op("Unsqueeze", shift, _ints(g, -1)), _ints(g, table.block_size))
    return g.op("Add", rows, g.op("Reshape", wide, _ints(g, 0, 0, inner)))


def linear(g: Graph, x: Value, w: Matrix) -> Value:
    """x (B, T, inner) @ w.T + bias: (B, T, out).

    A block scale * q + minimum is split into scale * (q - 8) + (minimum + 8 * scale): the first
    part is MatMulNBits with its default zero point, the second needs only the sums of x over each
    block. Centred like this, the int8 rounding of x is not amplified by the minimum (mean KL of
    SmolLM2-135M Q4_1 against float32: 0.004; with zero point 0: 0.014).
    """
    out, inner = w.shape
    if not w.scales:
        y = g.op("FusedMatMul", x, _float32(g, g.weight(w.values), w.values), transB=1)
        return _add_bias(g, y, w)
    y = g.op(
        "MatMulNBits",
        x,
        g.weight(w.values),
        _float32(g, g.weight(w.scales), w.scales),
        g.weight(w.zero_points) if w.zero_points else None,
        K=inner,
        N=out,
        bits=w.bits,
        block_size=w.block_size,
        accuracy_level=g.accuracy_level,
    )
    # Right behind MatMulNBits, where ONNX Runtime takes it in as that node's own input.
    y = _add_bias(g, y, w)
    if not w.minima:
        return y
    blocks = g.op("Reshape", x, _ints(g, 0, 0, inner // w.block_size, w.block_size))
    sums = g.op("ReduceSum", blocks, _ints(g, -1), keepdims=0)
    # Three axes keep ONNX Runtime from packing this matrix: a single row streams it from memory,
    # and in its own layout that takes half the time.
    shift = _block_shift(g, w, (1, out, inner // w.block_size))
    return g.op("Add", y, g.op("FusedMatMul", sums, shift, transB=1))


def rms_norm(g: Graph, x: Value, weight: Stored, eps: float) -> Value:
    return g.op("SimplifiedLayerNormalization", x, g.weight(weight), axis=-1, epsilon=eps)


def add_rms_norm(
    g: Graph, x: Value, residual: Value, weight: Stored, eps: float
) -> tuple[Value, Value]:
    """The normalised sum of x and residual, and the sum itself: the new residual."""
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
    shape = ("batch_size", heads.kv, "past_sequence_length", heads.width)
    past = [g.input(f"past_key_values.{layer}.{part}", FLOAT, shape) for part in ("key", "value")]
    new = (qkv, None, None) if isinstance(qkv, Value) else qkv
    y, key, value = g.ops(
        "GroupQueryAttention",
        *new,
        *past,
        position.last,
        position.total,
        *((g.weight(rope.cos), g.weight(rope.sin)) if rope else ()),
        outputs=3,
        num_heads=heads.query,
        kv_num_heads=heads.kv,
        do_rotary=1 if rope else 0,
        **_score_attributes(scores),
    )
    shape = ("batch_size", heads.kv, "total_sequence_length", heads.width)
    g.output(f"present.{layer}.key", key, FLOAT, shape)
    g.output(f"present.{layer}.value", value, FLOAT, shape)
    return y


def _score_attributes(scores: Scores) -> dict[str, float]:
    named = {
        "scale": scores.scale,
        "local_window_size": scores.window,
        "softcap": scores.softcap,
    }
    return {name: value for name, value in named.items() if value is not None}


def gated_mlp(g: Graph, x: Value, gate_up: Matrix, down: Matrix) -> Value:
    """down(silu(gate(x)) * up(x)); ONNX Runtime fuses Sigmoid and Mul into QuickGelu."""
    gate, up = g.ops("Split", linear(g, x, gate_up), outputs=2, axis=-1, num_outputs=2)
    silu = g.op("Mul", gate, g.op("Sigmoid", gate))
    return linear(g, g.op("Mul", silu, up), down)


def gated_gelu_mlp(g: Graph, x: Value, gate_up: Matrix, down: Matrix) -> Value:
    """down(gelu(gate(x)) * up(x)), gelu by its tanh formula.

    FastGelu, because some providers take the standard Gelu's `approximate` for "none".
    """
    gate, up = g.ops("Split", linear(g, x, gate_up), outputs=2, axis=-1, num_outputs=2)
    return linear(g, g.op("Mul", g.op("FastGelu", gate), up), down)


def scaled(g: Graph, x: Value, factor: float) -> Value:
    return g.op("Mul", x, g.constant(np.array(factor, np.float32)))


def softcapped(g: Graph, x: Value, cap: float | None) -> Value:
    """cap * tanh(x / cap); x itself without a cap."""
    return x if cap is None else scaled(g, g.op("Tanh", scaled(g, x, 1 / cap)), cap)


def _add_bias(g: Graph, y: Value, w: Matrix) -> Value:
    return g.op("Add", y, g.weight(w.bias)) if w.bias else y


def _float32(g: Graph, value: Value, stored: Stored) -> Value:
    """`value` as float32. Casts of constants are folded once, at load."""
    return value if stored.dtype == np.float32 else g.op("Cast", value, to=int(FLOAT))


def _block_shift(g: Graph, w: Matrix, shape: tuple[int, ...]) -> Value:
    """minimum + middle * scale of each block, seen in `shape`; folded at load."""
    if w.minima is None or w.scales is None:
        raise ValueError("only blocks with minima have a shift")
    middle = g.constant(np.array(1 << (w.bits - 1), np.float32))
    scales = _float32(g, g.weight(w.scales, shape), w.scales)
    minima = _float32(g, g.weight(w.minima, shape), w.minima)
    return g.op("Add", minima, g.op("Mul", scales, middle))


def _explicit_zeros(g: Graph, w: Matrix) -> Value:
    """Zero points for GatherBlockQuantized, whose default differs between CPU and CUDA.

    The middle is made by a node that is folded at load, so it costs no bytes on disk.
    """
    if w.zero_points:
        return g.weight(w.zero_points)
    blocks = w.shape[1] // w.block_size
    shape = _ints(g, w.shape[0], -(-blocks * w.bits // 8))
    # Two 4-bit middles in a byte are 0x88, one 8-bit middle is 0x80.
    middle = np.array([0x88 if w.bits == 4 else 0x80], np.uint8)
    return g.op("Expand", g.constant(middle), shape)


def _ints(g: Graph, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))
