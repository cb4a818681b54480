"""Graphs: names come from scopes, constants are shared, weights are places in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgellm.runtime.session import load_onnxruntime
from edgellm_export.data import ALIGNMENT_BYTES, DataFile
from edgellm_export.graph import FLOAT, MICROSOFT, OPSET, Graph

DATA = "model.onnx_data"


@pytest.fixture
def data(tmp_path: Path) -> DataFile:
    return DataFile(tmp_path / DATA)


def loaded(g: Graph, folder: Path) -> ir.Model:
    g.save(folder / "g.onnx")
    return ir.load(folder / "g.onnx")


def run(folder: Path, **feed: np.ndarray) -> np.ndarray:
    ort = load_onnxruntime()
    session = ort.InferenceSession(str(folder / "g.onnx"), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def test_names_are_the_scopes_and_never_repeat(tmp_path: Path) -> None:
    g = Graph("g", DATA)
    x = g.input("x", FLOAT, ("n",))
    for i in range(2):
        with g.scope(f"layers.{i}"), g.scope("mlp"):
            x = g.op("Add", g.op("Add", x, x), x)
    g.output("y", g.op("Add", x, x), FLOAT, ("n",))
    names = [node.name for node in loaded(g, tmp_path).graph]
    assert names == [
        "layers.0/mlp/Add", "layers.0/mlp/Add_1", "layers.1/mlp/Add", "layers.1/mlp/Add_1", "Add",
    ]  # fmt: skip
    assert run(tmp_path, x=np.ones(3, np.float32)).tolist() == [18, 18, 18]


def test_a_scope_ends_also_after_an_error() -> None:
    g = Graph("g", DATA)
    x = g.input("x", FLOAT, ("n",))
    with pytest.raises(KeyError), g.scope("broken"):
        raise KeyError
    producer = g.op("Neg", x).producer()
    assert producer is not None
    assert producer.name == "Neg"


def test_equal_constants_are_one_and_different_ones_are_not(tmp_path: Path) -> None:
    g = Graph("g", DATA)
    one = g.constant(np.array([1], np.int64))
    assert g.constant(np.array([1], np.int64)) is one
    others = [np.array([2], np.int64), np.array([1], np.int32), np.array(1, np.int64)]
    assert all(g.constant(other) is not one for other in others)
    # Equal bytes, other meaning.
    zero = g.constant(np.array([0.0], np.float32))
    assert g.constant(np.array([0], np.int32)) is not zero
    assert g.constant(np.array([-0.0], np.float32)) is not zero


def test_domains_and_versions_are_those_every_loader_knows(tmp_path: Path) -> None:
    g = Graph("g", DATA)
    x = g.input("x", FLOAT, (1, "n"))
    scale = g.constant(np.ones(4, np.float32))
    norm = g.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=1e-5)
    skip = g.ops("SkipSimplifiedLayerNormalization", norm, x, scale, outputs=4, epsilon=1e-5)
    g.output("y", skip[0], FLOAT, (1, "n"))
    model = loaded(g, tmp_path)
    assert [node.domain for node in model.graph] == ["", MICROSOFT]
    assert dict(model.graph.opset_imports) == {"": OPSET, MICROSOFT: 1}
    assert model.ir_version == 10


def test_weights_lie_where_they_were_written_and_nothing_is_copied(
    tmp_path: Path, data: DataFile
) -> None:
    first, second = np.arange(3, dtype=np.float32), np.arange(10, 13, dtype=np.float32)
    with data:
        places = [data.append("a", first), data.append("b", second)]
    assert [place.offset % ALIGNMENT_BYTES for place in places] == [0, 0]
    assert places[1].offset == ALIGNMENT_BYTES
    before = data.path.read_bytes()
    g = Graph("g", DATA)
    x = g.input("x", FLOAT, (3,))
    y = g.op("Add", g.op("Mul", x, g.weight(places[0])), g.weight(places[1]))
    g.output("y", y, FLOAT, (3,))
    g.save(tmp_path / "g.onnx")
    assert run(tmp_path, x=np.full(3, 2, np.float32)).tolist() == [10, 13, 16]
    assert data.path.read_bytes() == before


def test_a_weight_seen_in_two_shapes_is_two_views_of_the_same_bytes(
    tmp_path: Path, data: DataFile
) -> None:
    with data:
        stored = data.append("table", np.arange(6, dtype=np.float32).reshape(2, 3))
    g = Graph("g", DATA)
    flat, square = g.weight(stored, (6,)), g.weight(stored)
    assert g.weight(stored) is square
    assert g.weight(stored, (6,)) is flat
    total = g.op("Add", g.op("ReduceSum", flat, keepdims=0), g.op("ReduceSum", square, keepdims=0))
    g.output("y", total, FLOAT, ())
    tensors = [v.const_value for v in loaded(g, tmp_path).graph.initializers.values()]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    assert {tensor.offset for tensor in external} == {stored.offset}
    assert sorted(tuple(tensor.shape) for tensor in external) == [(2, 3), (6,)]
    assert run(tmp_path) == 30


def test_a_graph_names_its_data_file_and_no_folder(tmp_path: Path, data: DataFile) -> None:
    with data:
        stored = data.append("w", np.ones(4, np.float32))
    g = Graph("g", DATA)
    g.output("y", g.op("Neg", g.weight(stored)), FLOAT, (4,))
    (tensor,) = [v.const_value for v in loaded(g, tmp_path).graph.initializers.values()]
    assert isinstance(tensor, ir.ExternalTensor)
    assert str(tensor.location) == DATA


def test_the_same_graph_is_the_same_bytes(tmp_path: Path) -> None:
    def drawn(name: str) -> bytes:
        g = Graph("g", DATA)
        x = g.input("x", FLOAT, ("n", 4))
        y = g.op("Concat", x, g.constant(np.ones((1, 4), np.float32)), axis=0)
        halves = g.ops("Split", y, outputs=2, axis=1, num_outputs=2)
        g.output("y", g.op("Add", *halves), FLOAT, ("m", 2))
        g.save(tmp_path / name)
        return (tmp_path / name).read_bytes()

    assert drawn("a.onnx") == drawn("b.onnx")


def test_the_hash_of_the_data_file_is_that_of_its_bytes(data: DataFile) -> None:
    import hashlib

    with data:
        data.append("a", np.arange(5, dtype=np.float16))
        strided = np.arange(12, dtype=np.uint8).reshape(3, 4).T
        stored = data.append("b", strided)
    raw = data.path.read_bytes()
    assert data.sha256 == hashlib.sha256(raw).hexdigest()
    assert data.bytes == len(raw)
    found = np.frombuffer(raw, np.uint8, stored.nbytes, stored.offset).reshape(stored.shape)
    assert np.array_equal(found, strided)


def test_a_data_file_never_overwrites_another(data: DataFile) -> None:
    with data:
        data.append("a", np.ones(1, np.float32))
    with pytest.raises(FileExistsError):
        DataFile(data.path)
