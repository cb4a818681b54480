"""The feed-forward half of a layer."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm_export.graph import Graph, Value
from edgellm_export.linear import Matrix, linear


def gated_mlp(g: Graph, x: Value, gate_up: Matrix, down: Matrix) -> Value:
    """down(silu(gate(x)) * up(x)); ONNX Runtime fuses Sigmoid and Mul into QuickGelu.

    In some layers the first token's product is far larger than the others' (Sun et al., Massive
    Activations in Large Language Models, arXiv:2402.17762).
    """
    gate, up = halves(g, x, gate_up)
    silu = g.op("Mul", gate, g.op("Sigmoid", gate))
    return linear(g, g.op("Mul", silu, up), down, uneven=True)


def halves(g: Graph, x: Value, pair: Matrix) -> Sequence[Value]:
    """What two matrices of one size make of x, stored as one or apart."""
    if pair.parts:
        return [linear(g, x, part) for part in pair.parts]
    return g.ops("Split", linear(g, x, pair), outputs=2, axis=-1, num_outputs=2)


def gated_gelu_mlp(g: Graph, x: Value, gate_up: Matrix, down: Matrix) -> Value:
    """down(gelu(gate(x)) * up(x)), gelu by its tanh formula.

    FastGelu, because some providers take the standard Gelu's `approximate` for "none".
    """
    gate, up = halves(g, x, gate_up)
    gelu = g.op("Gelu", gate, approximate="tanh") if g.static else g.op("FastGelu", gate)
    return linear(g, g.op("Mul", gelu, up), down, uneven=True)
