"""How a graph keeps its cache is said in the manifest, and only where that is news."""

from __future__ import annotations

import json

import pytest

from edgellm.bundle import manifest
from edgellm.bundle.manifest import CONCAT, SHARED, Graph, Manifest, Shape, Source
from edgellm.errors import Incompatible

SHAPE = Shape("any", 1, 1, 1, 4, 4, 10, 64, 100)


def written(graph: Graph) -> dict[str, object]:
    found = Manifest("m", "test", Source("test"), SHAPE, {"native": graph}, {})
    raw: dict[str, object] = json.loads(found.to_json())
    return raw


def test_a_shared_cache_is_not_mentioned_and_is_what_a_reader_assumes() -> None:
    raw = written(Graph("native", "onnx/a.onnx", "onnx/a.data"))
    assert raw["graphs"] == {
        "native": {"kind": "native", "path": "onnx/a.onnx", "data": "onnx/a.data"}
    }
    assert manifest.parse(raw).graphs["native"].cache == SHARED


def test_a_growing_cache_comes_back() -> None:
    raw = written(Graph("native", "onnx/a.onnx", "onnx/a.data", cache=CONCAT))
    assert manifest.parse(raw).graphs["native"].cache == CONCAT


def test_a_cache_of_an_unknown_kind_is_refused() -> None:
    raw = written(Graph("native", "onnx/a.onnx", "onnx/a.data", cache="paged"))
    with pytest.raises(Incompatible, match="cache kind 'paged' is not known"):
        manifest.parse(raw)
