"""A graph whose cache grows: hand-made, small enough to say in numpy what it must answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgellm.bundle.manifest import CONCAT, Graph, Shape
from edgellm.errors import EdgellmError, Incompatible
from edgellm.runtime.cache import KVCache
from edgellm.runtime.concat import ConcatSession, open_graph
from edgellm.runtime.decode import prefill
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session

V, N = 11, 4
SHAPE = Shape("hand", 1, 1, 1, N, N, V, 64, 1)
TABLE = np.random.default_rng(1).normal(size=(V, N)).astype(np.float32)
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def expected(ids: list[int]) -> np.ndarray:
    """Each token sees the mean of all so far, weighted by its position: logits (T, V)."""
    weighted = TABLE[ids] * (1 + np.arange(len(ids)))[:, None]
    sums = np.cumsum(weighted, axis=0) / (1 + np.arange(len(ids)))[:, None]
    return sums.astype(np.float32) @ TABLE.T


def write_graph(path: Path, rows: bool = False, extra: str | None = None) -> Path:
    """Keys are the embeddings times 1 + position; values are the keys' negatives, unused."""
    node, f32, i64 = helper.make_node, TensorProto.FLOAT, TensorProto.INT64
    nodes = [
        node("Gather", ["table", "input_ids"], ["embedded"]),
        node("Squeeze", ["position_ids", "zero"], ["positions"]),
        node("Cast", ["position_ids"], ["floats"], to=f32),
        node("Add", ["floats", "one"], ["factor"]),
        node("Unsqueeze", ["factor", "last"], ["wide"]),
        node("Mul", ["embedded", "wide"], ["flat"]),
        node("Unsqueeze", ["flat", "first"], ["key"]),
        node("Neg", ["key"], ["value"]),
        node("Concat", ["past_key_values.0.key", "key"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "value"], ["present.0.value"], axis=2),
        node("CumSum", ["present.0.key", "two"], ["sums"]),
        node("Squeeze", ["sums", "first"], ["total"]),
        node("Gather", ["total", "positions"], ["mine"], axis=1),
        node("Div", ["mine", "wide"], ["mean"]),
        *([node("Gather", ["mean", "logit_rows"], ["chosen"], axis=1)] if rows else []),
        node("MatMul", ["chosen" if rows else "mean", "head"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("input_ids", i64, ["b", "t"]),
        value("position_ids", i64, ["b", "t"]),
        *(value(f"past_key_values.0.{x}", f32, ["b", 1, "p", N]) for x in ("key", "value")),
        *([value("logit_rows", i64, ["rows"])] if rows else []),
        *([value(extra, i64, ["b"])] if extra else []),
    ]
    outputs = [
        value("logits", f32, ["b", "r", V]),
        *(value(f"present.0.{x}", f32, ["b", 1, "s", N]) for x in ("key", "value")),
    ]
    constants = {
        "table": TABLE,
        "head": np.ascontiguousarray(TABLE.T),
        "one": np.array(1, np.float32),
        "two": np.array(2, np.int64),
        **{k: np.array([v], np.int64) for k, v in (("zero", 0), ("first", 1), ("last", -1))},
    }
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "hand", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(params=[False, True], ids=["all rows", "chosen rows"])
def session(tmp_path: Path, request: pytest.FixtureRequest) -> Session:
    path = write_graph(tmp_path / "m.onnx", request.param)
    graph = Graph("native", "m.onnx", "d", cache=CONCAT)
    return open_graph(path, graph, SHAPE, LoadOptions(threads=1))


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    same = found.shape == wanted.shape
    return same and bool(np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max())


def test_all_at_once_and_token_by_token_are_equal(session: Session) -> None:
    whole = session.forward(IDS, range(len(IDS)), session.new_cache(1))
    assert close(whole, expected(IDS))
    cache = session.new_cache(1)
    single = [session.forward([token], [0], cache)[0] for token in IDS]
    assert close(np.stack(single), expected(IDS))
    assert cache.tokens == IDS


def test_the_rows_that_are_asked_for_come_back(session: Session) -> None:
    found = session.forward(IDS, [7, 2, 2], session.new_cache(1))
    assert close(found, expected(IDS)[[7, 2, 2]])
    assert session.forward(IDS, [], session.new_cache(1)).shape == (0, V)


def test_a_long_prompt_goes_in_chunks(session: Session) -> None:
    ids = (IDS * 30)[:290]
    assert close(prefill(session, session.new_cache(1), ids), expected(ids)[-1])


def test_what_is_rolled_back_is_forgotten(session: Session) -> None:
    cache = session.new_cache(1)
    session.forward([*IDS[:4], 8, 8, 8], [], cache)
    assert cache.keep_common(IDS) == 4
    assert close(session.forward(IDS[4:], range(6), cache), expected(IDS)[4:])
    assert cache.keep_common([7, 7]) == 0
    assert close(session.forward(IDS, [9], cache), expected(IDS)[9:])


def test_the_cache_says_what_it_takes(session: Session) -> None:
    cache = session.new_cache(500)
    assert cache.nbytes == 0
    session.forward(IDS, [], cache)
    assert cache.nbytes == 2 * len(IDS) * N * 4


def test_two_caches_do_not_disturb_each_other(session: Session) -> None:
    one, two = session.new_cache(1), session.new_cache(1)
    found = []
    for token in IDS:
        found.append(session.forward([token], [0], one)[0])
        session.forward([(token + 1) % V], [0], two)
    assert close(np.stack(found), expected(IDS))


def test_a_run_that_fails_leaves_the_cache_as_it_was(session: Session) -> None:
    cache = session.new_cache(1)
    session.forward(IDS[:5], [], cache)
    with pytest.raises(EdgellmError, match="the model could not be run"):
        session.forward([V + 5], [0], cache)
    assert close(session.forward(IDS[5:], range(5), cache), expected(IDS)[5:])


def test_a_graph_that_wants_more_is_refused_by_name(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", extra="token_type_ids")
    with pytest.raises(Incompatible, match="wants token_type_ids"):
        ConcatSession(path, SHAPE, LoadOptions(threads=1))


def test_a_cache_of_the_other_kind_is_a_mistake_of_ours(session: Session) -> None:
    with pytest.raises(ValueError, match="new_cache"):
        session.forward(IDS, [], KVCache(SHAPE, 8))
