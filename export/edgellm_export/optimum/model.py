"""The float graph that optimum traced: which products have which weights.

Shapes: N output features, K input features. A traced linear layer is MatMul with (K, N), or Gemm
with either; the embedding is a Gather from (V, K).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgellm.errors import Incompatible
from edgellm_export.weights import Float32

PAST = "past_key_values."
# Nodes that leave each number of the ids where it is.
SHAPERS = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten")
# Nodes after the last product that treat each logit for itself.
POINTWISE = ("Add", "Cast", "Div", "Identity", "Mul", "Tanh")


@dataclass(frozen=True, slots=True)
class Product:
    """A node that multiplies by a weight, or looks rows up in it.

    `name` is that of its module; `transposed`: the graph holds (K, N) instead of (N, K).
    """

    node: ir.Node
    weight: ir.Value
    name: str
    transposed: bool = False
    embedding: bool = False


@dataclass
class TracedModel:
    """A graph of standard inputs; Incompatible names what keeps it from being drawn again."""

    path: Path
    onnx: ir.Model = field(init=False)
    products: list[Product] = field(init=False)

    def __post_init__(self) -> None:
        self.onnx = ir.load(self.path)
        for node in self.nodes:
            if node.domain not in ("", "ai.onnx"):
                raise _not_drawn(f"operator {node.domain}::{node.op_type}")
            if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                   for a in node.attributes.values()):  # fmt: skip
                raise _not_drawn(f"a branch or loop ({node.op_type})")
        self.products = list(self._products())

    @property
    def nodes(self) -> list[ir.Node]:
        return list(self.onnx.graph)

    @property
    def opset(self) -> int:
        return self.onnx.opset_imports[""]

    @property
    def inputs(self) -> dict[str, ir.Value]:
        return {str(value.name): value for value in self.onnx.graph.inputs}

    @property
    def layers(self) -> int:
        return sum(name.startswith(PAST) and name.endswith(".key") for name in self.inputs)

    @property
    def kv_heads_and_width(self) -> tuple[int, int]:
        """Of the cache of layer 0, (batch, heads, positions, width)."""
        value = self.inputs.get(f"{PAST}0.key")
        dims = list(value.shape or ()) if value is not None else []
        if len(dims) != 4 or not isinstance(dims[1], int) or not isinstance(dims[3], int):
            raise _not_drawn("a cache that is not (batch, heads, positions, width) for each layer")
        return dims[1], dims[3]

    @cached_property
    def logits(self) -> ir.Value:
        return next(value for value in self.onnx.graph.outputs if value.name == "logits")

    @property
    def vocab_size(self) -> int:
        size = list(self.logits.shape or (None,))[-1]
        if not isinstance(size, int):
            raise _not_drawn("logits of unknown width")
        return size

    @cached_property
    def head(self) -> Product | None:
        """The product that ends in the logits, with only pointwise nodes behind it."""
        value: ir.Value | None = self.logits
        by_output = {product.node.outputs[0]: product for product in self.products}
        while value is not None and value not in by_output:
            node = value.producer()
            if node is None or node.op_type not in POINTWISE:
                return None
            computed = [v for v in node.inputs if v is not None and self.constant(v) is None]
            value = computed[0] if len(computed) == 1 else None
        found = by_output[value] if value is not None else None
        return found if found is not None and found.node.op_type == "MatMul" else None

    def constant(self, value: ir.Value | None) -> NDArray[np.generic] | None:
        """The numbers of an initializer, a Constant node, or an Identity of one of them."""
        source = self.source(value)
        return None if source is None or source.const_value is None else source.const_value.numpy()

    def named(self, name: str) -> NDArray[np.generic]:
        """The numbers of one of `other_constants`."""
        return self._others[name][1]

    def other_constants(self) -> list[ir.Value]:
        """Constants that nodes use as they are: norms, biases, tables of positions, shapes."""
        return [value for value, _ in self._others.values()]

    @cached_property
    def _others(self) -> dict[str, tuple[ir.Value, NDArray[np.generic]]]:
        by_node = {product.node: product for product in self.products}
        found: dict[str, tuple[ir.Value, NDArray[np.generic]]] = {}
        for node in self.nodes:
            if self.constant(node.outputs[0]) is not None:
                continue
            taken = by_node[node].weight if node in by_node else None
            for value in node.inputs:
                source, numbers = self.source(value), self.constant(value)
                if source is not None and numbers is not None and source is not taken:
                    found[str(source.name)] = (source, numbers)
        return found

    def source(self, value: ir.Value | None) -> ir.Value | None:
        """The value that `value` is another name of."""
        while value is not None and (node := value.producer()) is not None:
            if node.op_type == "Constant" and value.const_value is None:
                value.const_value = node.attributes["value"].as_tensor()
            if node.op_type != "Identity":
                break
            value = node.inputs[0]
        return value

    def matrix(self, product: Product) -> Float32:
        """(N, K), as a copy that is contiguous."""
        values = self.constant(product.weight)
        if values is None:
            raise ValueError(f"{product.name} has no weight")
        whole = np.asarray(values, np.float32)
        return np.ascontiguousarray(whole.T if product.transposed else whole)

    @cached_property
    def twins(self) -> dict[str, str]:
        """The first product with the same numbers, by the name of each: tied weights are one."""
        first: dict[str, str] = {}
        return {
            product.name: first.setdefault(_digest(self.matrix(product)), product.name)
            for product in self.products
        }

    def _products(self) -> Iterator[Product]:
        names: set[str] = set()
        for node in self.nodes:
            found = self._product(node)
            if found is None:
                continue
            weight, transposed = found
            name = _module(node) or str(weight.name)
            while name in names:  # a module that is used twice
                name += "_"
            names.add(name)
            yield Product(node, weight, name, transposed, node.op_type == "Gather")

    def _product(self, node: ir.Node) -> tuple[ir.Value, bool] | None:
        """The weight that a node multiplies by, and whether it is (K, N)."""
        match node.op_type:
            case "MatMul":
                weight = self._matrix_value(node.inputs[1])
                return None if weight is None else (weight, True)
            case "Gemm":
                plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
                if any(_number(node, key, value) != value for key, value in plain.items()):
                    return None
                weight = self._matrix_value(node.inputs[1])
                return None if weight is None else (weight, not _number(node, "transB", 0))
            case "Gather":
                weight = self._matrix_value(node.inputs[0])
                if weight is None or _number(node, "axis", 0) or not self._is_ids(node.inputs[1]):
                    return None
                return weight, False
        return None

    def _matrix_value(self, value: ir.Value | None) -> ir.Value | None:
        found = self.source(value)
        numbers = None if found is None else found.const_value
        if found is None or numbers is None or numbers.dtype != ir.DataType.FLOAT:
            return None
        return found if len(numbers.shape) == 2 and found.is_initializer() else None

    def _is_ids(self, value: ir.Value | None) -> bool:
        while value is not None and (node := value.producer()) is not None:
            if node.op_type not in SHAPERS:
                return False
            value = node.inputs[0]
        return value is not None and value.name == "input_ids"


def _module(node: ir.Node) -> str:
    """ "/transformer/h.0/attn/c_attn/Gemm" is "transformer.h.0.attn.c_attn"."""
    path, _, _ = (node.name or "").rpartition("/")
    return path.strip("/").replace("/", ".")


def _number(node: ir.Node, key: str, default: float) -> float:
    attribute = node.attributes.get(key)
    return default if attribute is None else float(attribute.value)


def _digest(values: Float32) -> str:
    return f"{values.shape} {hashlib.sha256(values.data).hexdigest()}"


def _not_drawn(what: str) -> Incompatible:
    return Incompatible(
        f"the graph that optimum traced has {what}, which cannot be drawn again; use a model with "
        "a builder here"
    )
