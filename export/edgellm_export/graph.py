"""ONNX graphs written by hand: nodes are wired by object, and scopes supply the names.

    g = Graph("decoder")
    ids = g.input("input_ids", INT64, ("batch_size", "sequence_length"))
    with g.scope("layers.0"):
        y = g.op("Add", g.op("MatMul", x, g.weight(stored)), x)
    g.output("logits", y)
    g.save(path)

Weights stay in the data file (`data.DataFile`); a graph holds only where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgellm_export.data import Stored
from edgellm_export.kv import FLOAT32_KV, KVType
from edgellm_export.static import Static

Value = ir.Value
Dim = int | str
Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.Attr

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64
FLOAT, FLOAT16, INT8 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8

# Opset 21: the newest that transformers.js, genai and optimum load alike.
OPSET, IR_VERSION = 21, 10
MICROSOFT = "com.microsoft"
# Operators of ONNX Runtime's own domain (docs/ContribOperators.md) that the blocks use.
CONTRIB = frozenset(
    {
        "DynamicQuantizeMatMul",
        "FastGelu",
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MoE",
        "QMoE",
        "SkipSimplifiedLayerNormalization",
    }
)


# MatMulNBits: 4 rounds activations to int8 per block, the only level with fast kernels for 8 bits;
# 0 keeps them float32, which is what the self-check compares with.
FAST, EXACT = 4, 0


class Graph:
    """A graph under construction over one data file."""

    def __init__(self, name: str, data_file: str, accuracy_level: int = FAST) -> None:
        self.accuracy_level = accuracy_level
        self.opset = OPSET
        # True: a quantized embedding is spelled in standard operators (blocks.embedding).
        self.spell_embedding = False
        # True: matrices with slots take a run-time adapter (linear.linear).
        self.adapters = False
        # True: queries and keys come scaled from the rotary tables (blocks.attention).
        self.unit_scores = False
        # True: products take the weights for long prompts, where a matrix has them (rotated).
        self.many_rows = False
        # How blocks.attention stores keys and values.
        self.kv: KVType = FLOAT32_KV
        # FLOAT16: products and attention compute in it; norms and the residual stream never do,
        # since float16 ends at 65,504 and a sum of squares gets there soon.
        self.activations = FLOAT
        # Shapes that are fixed, which turns blocks and products into those of `static`.
        self.static: Static | None = None
        self._half: set[Value] = set()
        self._name = name
        self._data_file = data_file
        self._scopes: list[str] = []
        self._names: dict[str, int] = {}
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[object, Value] = {}
        self._made: dict[object, Value] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names made inside begin with `name`."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, name: str, value: Value, dtype: ir.DataType, shape: Sequence[Dim]) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def op(self, op_type: str, *inputs: Value | None, **attributes: Attribute) -> Value:
        """The only output of a new node; None stands for an omitted optional input."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: Value | None, outputs: int, **attributes: Attribute
    ) -> Sequence[Value]:
        """All outputs of a new node."""
        name = self._unique(op_type)
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=MICROSOFT if op_type in CONTRIB else "",
            num_outputs=outputs,
            name=name,
        )
        for i, value in enumerate(node.outputs):
            value.name = f"{name}/output_{i}"
        self._nodes.append(node)
        to_half = attributes.get("to") == int(FLOAT16) if op_type == "Cast" else None
        if to_half or (to_half is None and not self._half.isdisjoint(filter(None, inputs))):
            self._half.update(node.outputs)
        return node.outputs

    def to(self, value: Value, dtype: ir.DataType) -> Value:
        """`value`, a float, as FLOAT or FLOAT16. Casts of constants are folded once, at load."""
        if (value in self._half) == (dtype == FLOAT16):
            return value
        return self.op("Cast", value, to=int(dtype))

    def dtype(self, value: Value) -> ir.DataType:
        """FLOAT16 or FLOAT, whichever `value`, a float, is."""
        return FLOAT16 if value in self._half else FLOAT

    def once(self, key: object, make: Callable[[], Value]) -> Value:
        """What `make` returned when this key was asked for first: one node for all layers."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def omit(self, *values: Value) -> None:
        """Optional outputs that nobody wants: an unnamed one is not computed."""
        for value in values:
            value.name = ""

    def constant(self, array: NDArray[np.generic]) -> Value:
        """A small value that lives in the graph itself; equal ones are shared."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._initializers:
            name = f"constant_{len(self._initializers)}"
            self._initializers[key] = _initializer(name, ir.tensor(array, name=name), array.shape)
        return self._initializers[key]

    def weight(self, stored: Stored, shape: tuple[int, ...] | None = None) -> Value:
        """A stored array as it is, or its bytes seen in another `shape`."""
        shape = shape or stored.shape
        key = (stored.offset, shape)
        if key not in self._initializers:
            name = stored.name if shape == stored.shape else f"{stored.name}.{len(shape)}d"
            tensor = ir.ExternalTensor(
                self._data_file,
                stored.offset,
                stored.nbytes,
                ir.DataType.from_numpy(stored.dtype),
                shape=ir.Shape(shape),
                name=name,
            )
            self._initializers[key] = _initializer(name, tensor, shape)
            if stored.dtype == np.float16:
                self._half.add(self._initializers[key])
        return self._initializers[key]

    @property
    def outputs(self) -> Sequence[Value]:
        """All outputs so far."""
        return self._outputs

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """All nodes so far, in the order they were made."""
        return self._nodes

    def keep_only(self, outputs: Sequence[Value]) -> None:
        """These become the outputs; nodes and inputs that none of them needs are dropped."""
        needed: set[Value] = set(outputs)
        kept = []
        for node in reversed(self._nodes):
            if needed.intersection(node.outputs):
                needed.update(value for value in node.inputs if value is not None)
                kept.append(node)
        self._nodes = kept[::-1]
        self._inputs = [value for value in self._inputs if value in needed]
        self._outputs = list(outputs)

    def save(self, path: Path) -> None:
        """Write the graph; the data file stays as it is, beside it."""
        # Nodes that were dropped still count as users of their values.
        used = {value for node in self._nodes for value in node.inputs}
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=[value for value in self._initializers.values() if value in used],
            opset_imports={"": self.opset, MICROSOFT: 1},
            name=self._name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="edgellm")
        path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))

    def _unique(self, op_type: str) -> str:
        name = "/".join([*self._scopes, op_type])
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name


def _initializer(name: str, tensor: ir.TensorProtocol, shape: Sequence[int]) -> Value:
    return ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor
    )
