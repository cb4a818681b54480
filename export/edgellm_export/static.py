"""Blocks of graphs whose every shape is fixed, in standard operators (opset 23), for NPUs.

The cache is read only: P positions, valid ones first, in an order that only the host knows. A pass
of T tokens attends to [cache | new tokens] under masks that are inputs, and returns the keys and
values of its tokens, which the host writes where it likes. RoPE's rows are inputs too, and so are
the rows of the embedding table.
Source: ONNX operators Attention, RotaryEmbedding and RMSNormalization, docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from edgellm_export.blocks import Heads, Rope, Scores
    from edgellm_export.data import Stored
    from edgellm_export.graph import Graph

Value = ir.Value
FLOAT = ir.DataType.FLOAT
OPSET = 23


@dataclass(slots=True)
class Static:
    """T `tokens` at once over P `past` positions. `ropes` are the tables whose rows are inputs, by
    their names, `masks` the masks (1, 1, T, P + T), added to scores, by window (None: all)."""

    tokens: int
    past: int
    ropes: dict[str, Stored] = field(default_factory=dict)
    masks: dict[int | None, Value] = field(default_factory=dict)
    rows: dict[str, Value] = field(default_factory=dict)

    def mask(self, g: Graph, window: int | None) -> Value:
        if window not in self.masks:
            name = "mask" if window is None else f"mask_{window}"
            shape = (1, 1, self.tokens, self.past + self.tokens)
            self.masks[window] = g.input(name, FLOAT, shape)
        return self.masks[window]

    def table(self, g: Graph, stored: Stored) -> Value:
        """The rows of a rotary table for the new tokens, (1, T, R / 2)."""
        if stored.name not in self.rows:
            self.ropes[stored.name] = stored
            shape = (1, self.tokens, stored.shape[1])
            self.rows[stored.name] = g.input(stored.name, FLOAT, shape)
        return self.rows[stored.name]


def rms_norm(g: Graph, x: Value, weight: Stored, eps: float) -> Value:
    return g.op("RMSNormalization", x, g.weight(weight), axis=-1, epsilon=eps)


def add_rms_norm(
    g: Graph, x: Value, residual: Value, weight: Stored, eps: float
) -> tuple[Value, Value]:
    total = g.op("Add", x, residual)
    return rms_norm(g, total, weight, eps), total


def dense(g: Graph, x: Value, weight: Value) -> Value:
    """x @ weight.T; the transposed constant is folded at load."""
    return g.op("MatMul", x, g.op("Transpose", weight, perm=[1, 0]))


def attention(
    g: Graph,
    static: Static,
    qkv: Sequence[Value],
    layer: int,
    heads: Heads,
    rope: Rope | None,
    scores: Scores,
) -> Value:
    """As blocks.attention; keys and values of the new tokens are outputs."""
    counts = (heads.query, heads.kv, heads.kv)
    parts = [_heads(g, x, n, heads.width) for x, n in zip(qkv, counts, strict=True)]
    q, k = (_turned(g, static, part, heads.width, rope) for part in parts[:2])
    v = parts[2]
    shape = (1, heads.kv, static.past, heads.width)
    past = [g.input(f"past_key_values.{layer}.{part}", FLOAT, shape) for part in ("key", "value")]
    keys, values = (g.op("Concat", p, new, axis=2) for p, new in zip(past, (k, v), strict=True))
    given = {"scale": scores.scale, "softcap": scores.softcap}
    y = g.op(
        "Attention",
        q,
        keys,
        values,
        static.mask(g, scores.window),
        **{name: value for name, value in given.items() if value is not None},
    )
    shape = (1, heads.kv, static.tokens, heads.width)
    g.output(f"new.{layer}.key", k, FLOAT, shape)
    g.output(f"new.{layer}.value", v, FLOAT, shape)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    return g.op("Reshape", y, _ints(g, 1, static.tokens, heads.query * heads.width))


def _heads(g: Graph, x: Value, count: int, width: int) -> Value:
    """(1, T, count * N) to (1, count, T, N)."""
    apart = g.op("Reshape", x, _ints(g, 1, -1, count, width))
    return g.op("Transpose", apart, perm=[0, 2, 1, 3])


def _turned(g: Graph, static: Static, x: Value, width: int, rope: Rope | None) -> Value:
    if rope is None:
        return x
    cos, sin = static.table(g, rope.cos), static.table(g, rope.sin)
    turned = 2 * rope.cos.shape[1]
    return g.op("RotaryEmbedding", x, cos, sin, rotary_embedding_dim=turned % width)


def _ints(g: Graph, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))
