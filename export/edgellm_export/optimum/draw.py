"""The traced graph again, over our data file: products with stored weights, the rest as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgellm_export.data import Stored
from edgellm_export.graph import INT64, Graph, Value
from edgellm_export.linear import Matrix, embedding, linear
from edgellm_export.optimum.model import Product, TracedModel
from edgellm_export.store import WeightStore

# Constants with fewer bytes stay in the graph: shapes, axes, scalars.
INLINE_BYTES = 128


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A traced model whose weights are in the data file: matrices by module, others by name."""

    model: TracedModel
    matrices: Mapping[str, Matrix]
    others: Mapping[str, Stored]


def store(weights: WeightStore, model: TracedModel) -> StoredModel:
    """Every weight, written as the recipe wants it; equal matrices once."""
    matrices: dict[str, Matrix] = {}
    for product in model.products:
        name, twin = product.name, model.twins[product.name]
        if twin in matrices:
            matrices[name] = matrices[twin]
        elif product.embedding or product is model.head:
            matrices[name] = weights.outer(name, name)
        else:
            matrices[name] = weights.linear(name, name)
    others: dict[str, Stored] = {}
    for value in model.other_constants():
        name, values = str(value.name), model.named(str(value.name))
        if values.nbytes >= INLINE_BYTES:
            floats = values.dtype == np.float32
            others[name] = weights.vector(name) if floats else weights.data.append(name, values)
    return StoredModel(model, matrices, others)


def draw(g: Graph, stored: StoredModel, chosen_rows: bool) -> None:
    """All nodes from the standard inputs to logits and present.*.

    `chosen_rows` adds the input logit_rows (R,), whose logits alone are computed, where the graph
    allows it.
    """
    model = stored.model
    g.opset = model.opset
    _Drawing(g, stored, chosen_rows and model.head is not None).draw()


class _Drawing:
    def __init__(self, g: Graph, stored: StoredModel, chosen_rows: bool) -> None:
        self._g, self._stored, self._model = g, stored, stored.model
        self._made: dict[ir.Value, Value] = {
            value: g.input(name, _type(value), _dims(value))
            for name, value in self._model.inputs.items()
        }
        self._rows = g.input("logit_rows", INT64, ("rows",)) if chosen_rows else None
        self._products = {product.node: product for product in self._model.products}

    def draw(self) -> None:
        for node in self._model.nodes:
            if self._model.constant(node.outputs[0]) is None:
                with self._g.scope((node.name or "").strip("/").rpartition("/")[0] or "model"):
                    self._made.update(zip(node.outputs, self._node(node), strict=True))
        outputs = []
        for value in self._model.onnx.graph.outputs:
            dims = list(_dims(value))
            if self._rows is not None and value is self._model.logits:
                dims[1] = "rows"
            self._g.output(str(value.name), self._made[value], _type(value), dims)
            outputs.append(self._made[value])
        # Some of what torch traced leads nowhere.
        self._g.keep_only(outputs)

    def _node(self, node: ir.Node) -> list[Value]:
        product = self._products.get(node)
        if product is not None:
            return [self._product(node, product)]
        inputs = [self._value(value) for value in node.inputs]
        count = len(node.outputs)
        return list(self._g.ops(node.op_type, *inputs, outputs=count, **node.attributes))

    def _product(self, node: ir.Node, product: Product) -> Value:
        matrix = self._stored.matrices[product.name]
        x = self._value(node.inputs[1 if product.embedding else 0])
        if x is None:
            raise ValueError(f"{product.name} multiplies nothing")
        if product.embedding:
            return embedding(self._g, x, matrix)
        if self._rows is not None and product is self._model.head:
            x = self._g.op("Gather", x, self._rows, axis=1)
        y = linear(self._g, x, matrix)
        bias = self._value(node.inputs[2]) if len(node.inputs) > 2 else None
        return y if bias is None else self._g.op("Add", y, bias)

    def _value(self, value: ir.Value | None) -> Value | None:
        if value is None or value in self._made:
            return None if value is None else self._made[value]
        source, numbers = self._model.source(value), self._model.constant(value)
        if source is None or numbers is None:
            raise ValueError(f"{value.name} comes from nowhere")
        place = self._stored.others.get(str(source.name))
        return self._g.constant(numbers) if place is None else self._g.weight(place)


def _type(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise ValueError(f"{value.name} has no type")
    return value.dtype


def _dims(value: ir.Value) -> list[int | str]:
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
