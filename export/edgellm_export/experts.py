"""The mixture of experts: a router chooses some of many small MLPs for each token.

Shapes as in blocks.py; E experts of width I.
Source: MoE and QMoE in ONNX Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.errors import Incompatible
from edgellm_export.data import Stored
from edgellm_export.graph import EXACT, FLOAT, FLOAT16, Attribute, Graph, Value
from edgellm_export.linear import Matrix, floats, linear


@dataclass(frozen=True, slots=True)
class Experts:
    """Stored experts one after another: rows of gate and up alternate, (E * 2 I, D), and down,
    (E * D, I). `chosen` of them work on a token, weighted by their probability: among the chosen
    when `renormalised`, among all otherwise."""

    router: Matrix
    gate_up: Matrix
    down: Matrix
    chosen: int
    renormalised: bool

    def __post_init__(self) -> None:
        """Incompatible says what the one node for all experts cannot hold."""
        pair = (self.gate_up, self.down)
        if any(matrix.minima for matrix in pair):
            raise Incompatible("experts with block minima cannot be kept; use --precision int4")
        if any(matrix.bits == 2 for matrix in pair):
            raise Incompatible("experts of 2 bits cannot be checked; use --precision int4")
        sizes = [(matrix.bits, matrix.block_size) for matrix in pair]
        if sizes[0] != sizes[1]:
            raise Incompatible(
                f"experts need one width of blocks, theirs would be {sizes[0][1]} and "
                f"{sizes[1][1]}; use --precision int8 or fp16"
            )

    @property
    def count(self) -> int:
        return self.router.shape[0]


def mixture(g: Graph, x: Value, w: Experts) -> Value:
    """The weighted sum of the chosen experts' down(silu(gate(x)) * up(x)): (B, T, D)."""
    if g.activations == FLOAT16 or g.static:
        raise Incompatible(
            "experts are float32 nodes, which only the CPU runs; use --precision int4"
        )
    logits = linear(g, x, w.router)  # (B, T, E)
    flat = g.op("Reshape", logits, g.constant(np.array([-1, w.count], np.int64)))
    if w.gate_up.scales and not (w.gate_up.bits == 8 and g.accuracy_level == EXACT):
        y = _of_blocks(g, x, flat, w)
    else:
        y = _of_floats(g, x, flat, w)
    if w.renormalised:
        return y
    # Not normalize_routing_weights=0: QMoE ignores it, and MoE returns wrong numbers with it unless
    # its own input or output is one of the graph's (both seen in ONNX Runtime 1.31.1).
    chances = g.op("Softmax", logits, axis=-1)
    top, _ = g.ops("TopK", chances, g.constant(np.array([w.chosen], np.int64)), outputs=2, axis=-1)
    last = g.constant(np.array([-1], np.int64))
    return g.op("Mul", y, g.op("ReduceSum", top, last, keepdims=1))


# 1: alternating rows of gate and up, the only order that the CPU's kernels know.
_SWIGLU: dict[str, Attribute] = {
    "normalize_routing_weights": 1,
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


def _of_blocks(g: Graph, x: Value, logits: Value, w: Experts) -> Value:
    return g.op(
        "QMoE",
        x,
        logits,
        *(_codes(g, w.gate_up, w.count), _scales(g, w.gate_up, w.count), None),
        *(_codes(g, w.down, w.count), _scales(g, w.down, w.count), None),
        *(None, None, None),
        *(_zeros(g, w.gate_up, w.count), _zeros(g, w.down, w.count)),
        expert_weight_bits=w.gate_up.bits,
        block_size=w.gate_up.block_size,
        accuracy_level=g.accuracy_level,
        k=w.chosen,
        **_SWIGLU,
    )


def _of_floats(g: Graph, x: Value, logits: Value, w: Experts) -> Value:
    """The same with float32 weights; QMoE's 8-bit kernel always rounds activations, so the exact
    graph makes its integers float32 instead."""
    gate_up, down = _floats(g, w.gate_up, w.count), _floats(g, w.down, w.count)
    return g.op("MoE", x, logits, gate_up, None, down, k=w.chosen, **_SWIGLU)


def _floats(g: Graph, m: Matrix, count: int) -> Value:
    """(E, rows, inner) in float32."""
    shape = (count, m.shape[0] // count, m.shape[1])
    if m.scales is None:
        return _float32(g, m.values, shape)
    per_row = m.shape[1] // m.block_size
    zeros = _zeros(g, m, count)
    if zeros is None:
        middle = g.constant(np.array([1 << (m.bits - 1)], np.uint8))
        zeros = g.op("Expand", middle, g.constant(np.array([*shape[:2], per_row], np.int64)))
    return g.op(
        "DequantizeLinear",
        g.weight(m.values, shape),
        _scales(g, m, count),
        zeros,
        axis=2,
        block_size=m.block_size,
    )


def _codes(g: Graph, m: Matrix, count: int) -> Value:
    return g.weight(m.values, (count, m.shape[0] // count, m.shape[1] * m.bits // 8))


def _scales(g: Graph, m: Matrix, count: int) -> Value:
    if m.scales is None:
        raise ValueError("only blocks have scales")
    return floats(g, m.scales, (count, m.shape[0] // count, m.shape[1] // m.block_size))


def _zeros(g: Graph, m: Matrix, count: int) -> Value | None:
    if m.zero_points is None:
        return None
    return g.weight(m.zero_points, (count, m.shape[0] // count, m.zero_points.shape[1]))


def _float32(g: Graph, stored: Stored, shape: tuple[int, ...]) -> Value:
    value = g.weight(stored, shape)
    return value if stored.dtype == np.float32 else g.op("Cast", value, to=int(FLOAT))
