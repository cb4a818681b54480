"""Products for long prompts: int8 weights, one scale an output, times int8 activations.

MatMulNBits multiplies 4-bit blocks at half the speed that int8 has on many rows. A whole row with
one scale would lose what lies beside its outliers, so inputs are turned first, 64 at a time, by a
Hadamard matrix, which spreads an outlier evenly; the weights are turned the same way at export, so
that the product stays what it was: x @ w.T = (x H) @ (w H).T.

Sources: Ashkboos et al., QuaRot, arXiv:2404.00456 (Hadamard matrices in front of quantizers);
Dettmers et al., LLM.int8(), arXiv:2208.07339 (a scale a row, a scale a column). SmolLM2-135M, the
first 256 tokens of a window prefilled like this, KL of the next 256 tokens from float32: 0.0019,
without turning 0.029.

Shapes: T new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgellm_export.data import DataFile, Stored
from edgellm_export.graph import Graph, Value
from edgellm_export.weights import Dense, Float32, Weight, pieces, to_float32

# Larger ones gain nothing that SmolLM2-135M shows, and cost more: the product grows with them.
TURNED = 64
LARGEST = 127
# In the middle of uint8: MatMulIntegerToFloat is fastest on unsigned rows and signed weights.
MIDDLE = 128


@dataclass(frozen=True, slots=True)
class Rotated:
    """`codes` int8 (inner, out) of the turned weight, `scales` float32 (out,)."""

    codes: Stored
    scales: Stored

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


def store_rotated(data: DataFile, name: str, weight: Weight) -> Rotated:
    """The weight (out, inner), as it is stored elsewhere, once more: turned and rounded."""
    out, inner = weight.shape
    codes, scales = np.empty((inner, out), np.int8), np.empty(out, np.float32)
    turn = hadamard(turned_together(inner))
    for rows, values in _float_pieces(weight):
        turned = (values.reshape(-1, len(turn)) @ turn).reshape(values.shape)
        scale = np.maximum(np.abs(turned).max(axis=1) / LARGEST, np.float32(1e-12))
        codes[:, rows] = np.rint(turned / scale[:, None]).astype(np.int8).T
        scales[rows] = scale
    return Rotated(data.append(f"{name}.codes", codes), data.append(f"{name}.steps", scales))


def _float_pieces(weight: Weight) -> Iterator[tuple[slice, Float32]]:
    """Rows of the weight as float32, a few at a time where it is made of blocks."""
    if isinstance(weight, Dense):
        yield slice(0, weight.shape[0]), to_float32(weight)
        return
    for rows in pieces(*weight.shape):
        yield rows, weight.rows(rows).dequantize()


def turned_together(inner: int) -> int:
    """How many inputs are turned together: TURNED, or the largest power of two below it that
    divides `inner`."""
    return min(TURNED, inner & -inner)


def hadamard(size: int) -> Float32:
    """The symmetric orthogonal matrix (size, size) of Sylvester; `size` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: Float32 = (matrix / np.sqrt(size)).astype(np.float32)
    return scaled


def product(g: Graph, x: Value, w: Rotated) -> Value:
    """x (1, T, inner) @ w.T: (1, T, out), all rows of x rounded with one scale.

    Right behind a norm or attention, where rows are of one size. SmolLM2-135M, its first 128
    tokens prefilled so: KL 0.0064 with one scale here, 0.0051 with one a row, which took 8 % longer
    for a prompt of 512; with one scale for the rows of `uneven_product` too, 0.0245.
    """
    turned = _turned(g, x, w)
    return g.op("DynamicQuantizeMatMul", turned, g.weight(w.codes), g.weight(w.scales))


def uneven_product(g: Graph, x: Value, w: Rotated) -> Value:
    """The same, every row of x rounded with a scale of its own: some are far larger than others."""
    turned = _turned(g, x, w)
    high = g.op("ReduceMax", turned, _ints(g, -1), keepdims=1)
    low = g.op("Neg", g.op("ReduceMin", turned, _ints(g, -1), keepdims=1))
    # Never zero: a row of zeros is divided by it.
    largest = g.op("Max", high, low, _float(g, 1e-12))
    step = g.op("Mul", largest, _float(g, 1 / LARGEST))
    one, middle = _float(g, 1), g.constant(np.array(MIDDLE, np.uint8))
    codes = g.op("QuantizeLinear", g.op("Div", turned, step), one, middle)
    y = g.op("MatMulIntegerToFloat", codes, g.weight(w.codes), one, g.weight(w.scales), middle)
    return g.op("Mul", y, step)


def _turned(g: Graph, x: Value, w: Rotated) -> Value:
    inner, _ = w.codes.shape
    size = turned_together(inner)
    apart = g.op("Reshape", x, _ints(g, 0, 0, inner // size, size))
    turned = g.op("MatMul", apart, g.constant(hadamard(size)))
    return g.op("Reshape", turned, _ints(g, 0, 0, inner))


def _float(g: Graph, value: float) -> Value:
    return g.constant(np.array(value, np.float32))


def _ints(g: Graph, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))
