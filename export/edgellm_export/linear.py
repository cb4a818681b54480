"""Stored matrices and the nodes that use them: a product, or the rows of a table.

Shapes: B batch, T new tokens, D model width. Operators with no other source are ONNX Runtime's,
docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgellm.errors import Incompatible
from edgellm_export import rotated, static
from edgellm_export.data import Stored, StoredSteps
from edgellm_export.graph import FLOAT, Graph, Value
from edgellm_export.rotated import Rotated


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for a run-time adapter: `rows` of a matrix's outputs, the checkpoint's layer `stem`."""

    stem: str
    rows: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stored weight of shape (out, inner), dense or in blocks (see weights.Blocks).

    Of blocks whose last one is not full `values` holds all but the last, and `tail` the bytes of
    that which count: (out, 1, bytes).
    `parts` are matrices of different formats whose outputs stand side by side; the fields between
    are then those of the first.
    `bias` (out,) is added to what it computes. `slots` cover its outputs in order, or are none.
    `rotated` is the same once more, for long prompts.
    """

    shape: tuple[int, int]
    values: Stored
    bits: int = 0
    block_size: int = 0
    scales: Stored | StoredSteps | None = None
    zero_points: Stored | None = None
    minima: Stored | StoredSteps | None = None
    lowest: int = 0
    tail: Stored | None = None
    bias: Stored | None = None
    parts: tuple[Matrix, ...] = ()
    slots: tuple[Slot, ...] = ()
    rotated: Rotated | None = None


def embedding(g: Graph, ids: Value, table: Matrix) -> Value:
    """Rows of the table: ids (B, T) to (B, T, D), float32: the residual stream begins here."""
    if g.static:
        return ids  # fixed shapes begin at the rows, see io.static
    inner = table.shape[1]
    if not table.scales:
        return g.to(g.op("Gather", g.weight(table.values), ids), FLOAT)
    rows = _spelled_rows(g, ids, table) if g.spell_embedding else _fused_rows(g, ids, table)
    if not table.minima:
        return rows
    shift = g.op("Gather", _block_shift(g, table, table.minima.shape), ids)
    wide = g.op("Expand", g.op("Unsqueeze", shift, _ints(g, -1)), _ints(g, table.block_size))
    return g.op("Add", rows, g.op("Reshape", wide, _ints(g, 0, 0, inner)))


def _fused_rows(g: Graph, ids: Value, table: Matrix) -> Value:
    """Dequantized rows by one operator; blocks with minima are still to be shifted."""
    if table.scales is None:
        raise ValueError("a dense table has no blocks")
    return g.op(
        "GatherBlockQuantized",
        g.weight(table.values, (table.shape[0], table.shape[1] * table.bits // 8)),
        ids,
        floats(g, table.scales, table.scales.shape),
        _explicit_zeros(g, table),
        bits=table.bits,
        block_size=table.block_size,
        gather_axis=0,
        quantize_axis=1,
    )


def _spelled_rows(g: Graph, ids: Value, table: Matrix) -> Value:
    """The same numbers as `_fused_rows`, in operators that every build of ONNX Runtime has."""
    if table.scales is None:
        raise ValueError("a dense table has no blocks")
    codes = _unpacked(g, g.op("Gather", g.weight(table.values), ids), table.bits)
    blocks = table.scales.shape[1]
    codes = g.op("Reshape", codes, _ints(g, 0, 0, blocks, table.block_size))
    zeros = g.constant(np.array(1 << (table.bits - 1), np.float32))
    if table.zero_points:
        packed = g.op("Gather", g.weight(table.zero_points), ids)
        padded = g.op("Reshape", _unpacked(g, packed, table.bits), _ints(g, 0, 0, -1))
        kept = g.op("Slice", padded, _ints(g, 0), _ints(g, blocks), _ints(g, 2))
        zeros = g.op("Unsqueeze", kept, _ints(g, -1))
    scales = _scales_of_rows(g, ids, table.scales)
    rows = g.op("Mul", g.op("Sub", codes, zeros), g.op("Unsqueeze", scales, _ints(g, -1)))
    return g.op("Reshape", rows, _ints(g, 0, 0, table.shape[1]))


def _unpacked(g: Graph, packed: Value, bits: int) -> Value:
    """(..., bytes) of small integers, low bits first, as float32 (..., bytes, 8 / bits)."""
    if bits == 8:
        return g.op("Cast", packed, to=int(FLOAT))
    mask = g.constant(np.array((1 << bits) - 1, np.uint8))
    parts = []
    for shift in range(0, 8, bits):
        by = g.constant(np.array(shift, np.uint8))
        shifted = g.op("BitShift", packed, by, direction="RIGHT") if shift else packed
        part = g.op("BitwiseAnd", shifted, mask)
        parts.append(g.op("Unsqueeze", g.op("Cast", part, to=int(FLOAT)), _ints(g, -1)))
    return g.op("Concat", *parts, axis=-1)


def linear(g: Graph, x: Value, w: Matrix, uneven: bool = False) -> Value:
    """x (B, T, inner) @ w.T + bias: (B, T, out).

    `uneven`: some rows of x are far larger than others.

    A block scale * q + minimum is split into scale * (q - 8) + (minimum + 8 * scale): the first
    part is MatMulNBits with its default zero point, the second needs only the sums of x over each
    block. Centred like this, the int8 rounding of x is not amplified by the minimum (mean KL of
    SmolLM2-135M Q4_1 against float32: 0.004; with zero point 0: 0.014).
    """
    x = g.to(x, g.activations)
    if w.parts:
        return g.op("Concat", *(linear(g, x, part, uneven) for part in w.parts), axis=-1)
    if w.slots and g.adapters:
        return g.op("Add", linear(g, x, replace(w, slots=()), uneven), _low_rank(g, x, w))
    if w.rotated and g.many_rows:
        product = rotated.uneven_product if uneven else rotated.product
        return _add_bias(g, product(g, x, w.rotated), w)
    out, inner = w.shape
    if g.static and w.minima:
        raise Incompatible("NPUs have no product with block minima; use --precision int4 or int8")
    if not w.scales:
        return _add_bias(g, _dense(g, x, w), w)
    y = g.op(
        "MatMulNBits",
        x,
        _codes(g, w),
        floats(g, w.scales, w.scales.shape, g.activations),
        g.weight(w.zero_points) if w.zero_points else None,
        K=inner,
        N=out,
        bits=w.bits,
        block_size=w.block_size,
        accuracy_level=g.accuracy_level,
    )
    # Right behind MatMulNBits, where ONNX Runtime takes it in as that node's own input.
    y = _add_bias(g, y, w)
    return g.op("Add", y, _block_sums_shifted(g, x, w)) if w.minima else y


def _block_sums_shifted(g: Graph, x: Value, w: Matrix) -> Value:
    """The sums of x over each block times that block's shift: (B, T, out)."""
    out, inner = w.shape
    blocks = inner // w.block_size
    apart = g.op("Reshape", x, _ints(g, 0, 0, blocks, w.block_size))
    sums = g.op("ReduceSum", apart, _ints(g, -1), keepdims=0)
    # Blocks by outputs, as MLAS's kernel for one row reads them in order; three axes keep ONNX
    # Runtime from packing them, which gains that row nothing.
    by_output = _block_shift(g, w, (1, out, blocks))
    shift = g.to(g.op("Transpose", by_output, perm=[0, 2, 1]), g.activations)
    return g.op("MatMul", sums, shift)


def _codes(g: Graph, w: Matrix) -> Value:
    """The blocks as MatMulNBits reads them; a tail is filled with zeros by nodes that are folded at
    load, so they cost no bytes on disk.

    Not by one Pad and Reshape of all blocks: loading 42 MB of them so took 38 MB more at its peak,
    this takes 8 (ONNX Runtime 1.31.1).
    """
    if not w.tail:
        return g.weight(w.values)
    missing = w.values.shape[2] - w.tail.shape[2]
    last = g.op("Pad", g.weight(w.tail), _ints(g, 0, 0, 0, 0, 0, missing))
    return g.op("Concat", g.weight(w.values), last, axis=1)


def _dense(g: Graph, x: Value, w: Matrix) -> Value:
    values = g.to(g.weight(w.values), g.activations)
    return static.dense(g, x, values) if g.static else g.op("FusedMatMul", x, values, transB=1)


def _low_rank(g: Graph, x: Value, w: Matrix) -> Value:
    """x @ A.T @ B.T of every slot side by side, (B, T, out); A (r, inner) and B (rows, r) are
    inputs. A slot that is not used has r = 0 and gives zeros.

    Hu et al., arXiv:2106.09685. ONNX Runtime's own adapters have no effect on bound inputs.
    """
    changes = []
    for slot in w.slots:
        rank = f"{slot.stem}.rank"
        a = g.input(f"{slot.stem}.lora_A", FLOAT, (rank, w.shape[1]))
        b = g.input(f"{slot.stem}.lora_B", FLOAT, (slot.rows, rank))
        narrow = g.op("FusedMatMul", x, g.to(a, g.activations), transB=1)
        changes.append(g.op("FusedMatMul", narrow, g.to(b, g.activations), transB=1))
    return changes[0] if len(changes) == 1 else g.op("Concat", *changes, axis=-1)


def _add_bias(g: Graph, y: Value, w: Matrix) -> Value:
    return g.op("Add", y, g.to(g.weight(w.bias), g.activations)) if w.bias else y


def floats(
    g: Graph, stored: Stored | StoredSteps, shape: tuple[int, ...], dtype: ir.DataType = FLOAT
) -> Value:
    """Scales or minima as `dtype`, seen in `shape`; made of constants, once, at load."""
    if isinstance(stored, Stored):
        return g.to(g.weight(stored, shape), dtype)
    rows, coarse = stored.coarse.shape
    fine = g.op(
        "Cast", g.weight(stored.steps, (rows, coarse, stored.shape[1] // coarse)), to=int(FLOAT)
    )
    wide = g.to(g.weight(stored.coarse, (rows, coarse, 1)), FLOAT)
    return g.to(g.op("Reshape", g.op("Mul", fine, wide), _ints(g, *shape)), dtype)


def _scales_of_rows(g: Graph, ids: Value, stored: Stored | StoredSteps) -> Value:
    """float32 (B, T, blocks); rows of float16 are widened only when they are asked for."""
    if isinstance(stored, Stored):
        return g.to(g.op("Gather", g.weight(stored), ids), FLOAT)
    return g.op("Gather", floats(g, stored, stored.shape), ids)


def _block_shift(g: Graph, w: Matrix, shape: tuple[int, ...]) -> Value:
    """minimum + (middle - lowest) * scale of each block, seen in `shape`; folded at load."""
    if w.minima is None or w.scales is None:
        raise ValueError("only blocks with minima have a shift")
    middle = g.constant(np.array((1 << (w.bits - 1)) - w.lowest, np.float32))
    scales = g.op("Mul", floats(g, w.scales, shape), middle)
    return g.op("Add", floats(g, w.minima, shape), scales)


def _explicit_zeros(g: Graph, w: Matrix) -> Value:
    """Zero points for GatherBlockQuantized, whose default differs between CPU and CUDA.

    The middle is made by a node that is folded at load, so it costs no bytes on disk.
    """
    if w.zero_points:
        return g.weight(w.zero_points)
    blocks = w.shape[1] // w.block_size
    shape = _ints(g, w.shape[0], -(-blocks * w.bits // 8))
    # Four middles of 2 bits in a byte, two of 4, one of 8.
    middle = np.array([{2: 0xAA, 4: 0x88, 8: 0x80}[w.bits]], np.uint8)
    return g.op("Expand", g.constant(middle), shape)


def _ints(g: Graph, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))
