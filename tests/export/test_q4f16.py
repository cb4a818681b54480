"""float16 activations: near the numpy forward pass, norms and residual in float32, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_architectures
import tiny_archs
import tiny_models as tiny

from edgellm.cli import main
from edgellm.errors import Incompatible, UsageError
from edgellm.runtime.session import load_onnxruntime
from edgellm_export import arch, io, reference
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.data import DataFile
from edgellm_export.drawing import Model
from edgellm_export.graph import FLOAT, FLOAT16, Graph
from edgellm_export.kv import KVType, kv_dtype
from edgellm_export.recipe import recipe
from edgellm_export.store import WeightStore
from edgellm_export.stored import StoredWeights
from edgellm_export.weights import Float32

IDS = np.random.default_rng(7).integers(3, tiny.vocab_size(), 40).tolist()
HALF = KVType("float16")


def half_graph(folder: Path, source: Path) -> tuple[Graph, Float32, Float32]:
    """The portable graph, its logits (T, V), and those of numpy on the same weights."""
    folder.mkdir(parents=True)
    checkpoint = open_checkpoint(source)
    architecture = arch.find(checkpoint.config["model_type"])
    with DataFile(folder / "weights.onnx_data") as data:
        store = WeightStore(checkpoint, recipe("q4f16"), data)
        weights = architecture.store(store)
    path = folder / "half.onnx"
    model = Model(architecture, weights, data.path)
    g = model.built(path, io.portable, 0, HALF, half=True)
    g.save(path)
    session = load_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape = model.shape
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), np.float16)
    feed = {value.name: empty for value in session.get_inputs() if value.type != "tensor(int64)"}
    feed["input_ids"] = np.array([IDS])
    feed["attention_mask"] = np.ones((1, len(IDS)), np.int64)
    found = np.asarray(session.run(["logits"], feed)[0][0])
    read = StoredWeights(data, store.places)
    return g, found, reference.forward(checkpoint.config, read, IDS)


def apart(found: Float32, wanted: Float32) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "llama": lambda f: tiny.write_folder(f, tiny.UNTIED),
    "gemma2": lambda f: tiny_archs.write(f, tiny_archs.GEMMA2),
    "gemma3": lambda f: tiny_archs.write(f, tiny_archs.GEMMA3),
    "phi3": lambda f: tiny_archs.write(f, tiny_archs.PHI3),
    **{
        name: (lambda f, name=name: tiny_architectures.write_folder(f, name))
        for name in tiny_architectures.CONFIGS
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_computes_nearly_the_same_in_float16(
    tmp_path: Path, family: str
) -> None:
    g, found, wanted = half_graph(tmp_path / "out", FAMILIES[family](tmp_path / "source"))
    assert found.dtype == np.float32
    assert 0 < apart(found, wanted) < 0.02
    for node in g.nodes:
        if "LayerNormalization" in node.op_type:
            assert all(g.dtype(value) == FLOAT for value in node.inputs if value is not None)
        if node.op_type in ("MatMulNBits", "FusedMatMul"):
            assert g.dtype(node.outputs[0]) == FLOAT16


def test_a_residual_beyond_float16_does_not_overflow(tmp_path: Path) -> None:
    """Gemma's grows to hundreds of thousands; float16 ends at 65,504."""
    table = tiny.weights(tiny.UNTIED)["model.embed_tokens.weight"] * np.float32(1e6)
    changes = {"model.embed_tokens.weight": table}
    source = tiny.write_folder(tmp_path / "source", tiny.UNTIED, changes=changes)
    assert np.abs(table).max() > 65504
    _, found, wanted = half_graph(tmp_path / "out", source)
    assert apart(found, wanted) < 0.02


def test_experts_are_refused_in_one_line(tmp_path: Path) -> None:
    source = tiny_archs.write(tmp_path / "source", tiny_archs.QWEN3_MOE)
    with pytest.raises(Incompatible, match="use --precision int4") as caught:
        tiny.make_bundle(source, tmp_path / "out", "q4f16")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q4f16")
    source = tiny.write_folder(folder / "source", replace(tiny.UNTIED, context=64))
    tiny.make_bundle(source, folder / "out", "q4f16")
    return folder / "out"


def test_files_and_types_are_what_transformers_js_expects(bundle: Path) -> None:
    graph = bundle / "onnx" / "model_q4f16.onnx"
    session = load_onnxruntime().InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    caches = [v for v in (*session.get_inputs(), *session.get_outputs()) if "key" in v.name]
    assert {value.type for value in caches} == {"tensor(float16)"}
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    assert config["transformers.js_config"]["dtype"] == "q4f16"
    # CUDA's fast path: symmetric blocks, so no zero points.
    nodes = [n for n in ir.load(graph).graph if n.op_type == "MatMulNBits"]
    assert nodes
    assert all(len(n.inputs) == 3 or n.inputs[3] is None for n in nodes)


def test_the_report_names_what_was_rounded(bundle: Path) -> None:
    report = json.loads((bundle / "edgellm.json").read_text(encoding="utf-8"))
    assert report["shape"]["kv_dtype"] == "float16"
    assert report["recipe"]["activations"] == "float16"
    assert 0 < report["self_check"]["kl_float16_activations"] < 1e-3
    assert "kl_int8_activations" not in report["self_check"]


def test_our_own_runtime_answers_with_it(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["run", str(bundle), "the fox", "--raw", "-n", "5", "-t", "0"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_another_cache_does_not_go_with_it(name: str) -> None:
    with pytest.raises(UsageError, match=f"--kv {name} does not go with float16 activations"):
        kv_dtype(name, "float16")
    assert kv_dtype("fp16", "float16") == kv_dtype(None, "float16") == "float16"
    assert kv_dtype(None, "float32") == "float32"
