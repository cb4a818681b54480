"""A decoder drawn by hand as torch's tracer draws one, small enough to say in numpy what it does.

Each token's key is its embedding times 1 + position; a token sees the sum of all keys so far,
divided by its own 1 + position. `mixer` adds a Gemm layer with a residual; the head is the
embedding, transposed, as tracing leaves tied weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Hand:
    """`table` is (V, N), `mixer` (N, N) applied as x @ mixer + bias."""

    table: Array
    mixer: Array | None = None
    bias: Array | None = None

    def logits(self, ids: list[int]) -> Array:
        """(T, V)"""
        places = (1 + np.arange(len(ids), dtype=np.float32))[:, None]
        x = np.cumsum(self.table[ids] * places, axis=0) / places
        if self.mixer is not None:
            x = x + x @ self.mixer + self.bias
        return np.asarray(x @ self.table.T, np.float32)


def hand(vocab: int, width: int, mixed: bool) -> Hand:
    rng = np.random.default_rng(1)

    def random(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    table = random(vocab, width)
    return Hand(table, random(width, width) / width, random(width)) if mixed else Hand(table)


def write_graph(path: Path, made: Hand, rows: bool = False, extra: str | None = None) -> Path:
    """The ONNX file; `rows`: only the logits asked for in logit_rows; `extra`: one more input."""
    node, f32, i64 = helper.make_node, TensorProto.FLOAT, TensorProto.INT64
    vocab, width = made.table.shape
    nodes = [
        node("Gather", ["table", "input_ids"], ["embedded"], "/model/embed/Gather"),
        node("Squeeze", ["position_ids", "zero"], ["positions"]),
        node("Cast", ["position_ids"], ["floats"], to=f32),
        node("Constant", [], ["one"], value=onnx.numpy_helper.from_array(np.float32([1]))),
        node("Add", ["floats", "one"], ["factor"]),
        node("Unsqueeze", ["factor", "last"], ["wide"]),
        node("Mul", ["embedded", "wide"], ["flat"]),
        node("Unsqueeze", ["flat", "first"], ["key"]),
        node("Neg", ["key"], ["value"]),
        node("Identity", ["value"], ["nobody_wants"]),
        node("Concat", ["past_key_values.0.key", "key"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "value"], ["present.0.value"], axis=2),
        node("CumSum", ["present.0.key", "two"], ["sums"]),
        node("Squeeze", ["sums", "first"], ["total"]),
        node("Gather", ["total", "positions"], ["mine"], axis=1),
        node("Div", ["mine", "wide"], ["mean"]),
        *(_mixer() if made.mixer is not None else [node("Identity", ["mean"], ["mixed"])]),
        *([node("Gather", ["mixed", "logit_rows"], ["chosen"], axis=1)] if rows else []),
        node("MatMul", ["chosen" if rows else "mixed", "head"], ["logits"], "/lm_head/MatMul"),
    ]
    value = helper.make_tensor_value_info
    shape = ["batch_size", 1, "past", width]
    inputs = [
        *(value(name, i64, ["batch_size", "t"]) for name in ("input_ids", "position_ids")),
        *(value(f"past_key_values.0.{x}", f32, shape) for x in ("key", "value")),
        *([value("logit_rows", i64, ["rows"])] if rows else []),
        *([value(extra, i64, ["batch_size"])] if extra else []),
    ]
    outputs = [
        value("logits", f32, ["batch_size", "r", vocab]),
        *(value(f"present.0.{x}", f32, ["batch_size", 1, "all", width]) for x in ("key", "value")),
    ]
    graph = helper.make_graph(nodes, "hand", inputs, outputs, _initializers(made))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


def _mixer() -> list[Any]:
    node = helper.make_node
    return [
        node("Reshape", ["mean", "rows_of_width"], ["two_axes"]),
        node("Identity", ["bias"], ["bias_again"]),
        node("Gemm", ["two_axes", "mixer", "bias_again"], ["mixed_two"], "/model/mixer/Gemm"),
        node("Shape", ["mean"], ["three"]),
        node("Reshape", ["mixed_two", "three"], ["mixed_three"]),
        node("Add", ["mean", "mixed_three"], ["mixed"]),
    ]


def _initializers(made: Hand) -> list[Any]:
    width = made.table.shape[1]
    constants = {
        "table": made.table,
        "head": np.ascontiguousarray(made.table.T),
        "mixer": made.mixer,
        "bias": made.bias,
        "two": np.array(2),
        "zero": np.array([0]),
        "first": np.array([1]),
        "last": np.array([-1]),
        "rows_of_width": np.array([-1, width]),
    }
    return [
        onnx.numpy_helper.from_array(array, name)
        for name, array in constants.items()
        if array is not None
    ]
