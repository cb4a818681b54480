"""The mixture of experts: a router chooses some of many small MLPs for each token.

Shapes as in blocks.py; E experts of width I.
Source: MoE and QMoE in ONNX Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm_export import blocks
from edgellm_export.blocks import Matrix
from edgellm_export.data import Stored
from edgellm_export.graph import EXACT, FLOAT, Graph, Value


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

    @property
    def count(self) -> int:
        return self.router.shape[0]


def mixture(g: Graph, x: Value, w: Experts) -> Value:
    """The weighted sum of the chosen experts' down(silu(gate(x)) * up(x)): (B, T, D)."""
    flat = g.constant(np.array([-1, w.count], np.int64))
    logits = g.op("Reshape", blocks.linear(g, x, w.router), flat)  # (B * T, E)
    if not w.gate_up.scales or (w.gate_up.bits == 8 and g.accuracy_level == EXACT):
        return _of_floats(g, x, logits, w)
    # Without a second input, QMoE makes the weights of the chosen sum to 1 whatever is asked.
    weights = None if w.renormalised else g.op("Softmax", logits, axis=-1)
    return g.op(
        "QMoE",
        x,
        logits,
        *(_codes(g, w.gate_up, w.count), _scales(g, w.gate_up, w.count), None),
        *(_codes(g, w.down, w.count), _scales(g, w.down, w.count), None),
        *(None, None, None),
        *(_zeros(g, w.gate_up, w.count), _zeros(g, w.down, w.count), None),
        weights,
        expert_weight_bits=w.gate_up.bits,
        block_size=w.gate_up.block_size,
        accuracy_level=g.accuracy_level,
        k=w.chosen,
        normalize_routing_weights=int(w.renormalised),
        activation_type="swiglu",
        # 1: alternating rows of gate and up, the only order that the CPU's kernel knows.
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
    )


def _of_floats(g: Graph, x: Value, logits: Value, w: Experts) -> Value:
    """The same with float32 weights; QMoE's 8-bit kernel always rounds activations, so the exact
    graph makes its integers float32 instead."""
    return g.op(
        "MoE",
        x,
        logits,
        _floats(g, w.gate_up, w.count),
        None,
        _floats(g, w.down, w.count),
        k=w.chosen,
        normalize_routing_weights=int(w.renormalised),
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
    )


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
    return _float32(g, m.scales, (count, m.shape[0] // count, m.shape[1] // m.block_size))


def _zeros(g: Graph, m: Matrix, count: int) -> Value | None:
    if m.zero_points is None:
        return None
    return g.weight(m.zero_points, (count, m.shape[0] // count, m.zero_points.shape[1]))


def _float32(g: Graph, stored: Stored, shape: tuple[int, ...]) -> Value:
    value = g.weight(stored, shape)
    return value if stored.dtype == np.float32 else g.op("Cast", value, to=int(FLOAT))
