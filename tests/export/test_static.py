"""Graphs of fixed shapes for NPUs: standard operators, and what the forward pass computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_architectures
import tiny_archs
import tiny_models as tiny

from edgellm.bundle.manifest import Source
from edgellm.bundle.open import verify
from edgellm.cli import main
from edgellm.errors import EdgellmError, Incompatible
from edgellm.runtime.session import load_onnxruntime
from edgellm_export import arch, reference
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.data import DataFile
from edgellm_export.drawing import Model
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import recipe
from edgellm_export.store import WeightStore
from edgellm_export.stored import StoredWeights
from edgellm_export.targets import qnn
from edgellm_export.targets.host import Host
from edgellm_export.weights import Float32

IDS = np.random.default_rng(7).integers(3, tiny.vocab_size(), 30).tolist()
LIMIT = 1e-4

FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "llama": lambda f: tiny.write_folder(f, tiny.TINY),
    "wide heads": lambda f: tiny.write_folder(f, tiny.WIDE_HEADS),
    "gemma2": lambda f: tiny_archs.write(f, tiny_archs.GEMMA2),
    "gemma3": lambda f: tiny_archs.write(f, tiny_archs.GEMMA3),
    "phi3": lambda f: tiny_archs.write(f, tiny_archs.PHI3),
    **{
        name: (lambda f, name=name: tiny_architectures.write_folder(f, name))
        for name in tiny_architectures.CONFIGS
    },
}


def drawn(folder: Path, source: Path, precision: str) -> tuple[dict[str, Path], Float32]:
    """The graphs, and what numpy computes on the same weights: logits (T, V)."""
    folder.mkdir(parents=True)
    checkpoint = open_checkpoint(source)
    architecture = arch.find(checkpoint.config["model_type"])
    with DataFile(folder / "model_q4.onnx_data") as data:
        store = WeightStore(checkpoint, recipe(precision), data)
        weights = architecture.store(store)
    paths = qnn.draw(Model(architecture, weights, data.path), "_q4", 48)
    read = StoredWeights(data, store.places)
    return paths, reference.forward(checkpoint.config, read, IDS)


def host(paths: Mapping[str, Path]) -> Host:
    ort = load_onnxruntime()
    inputs, run = {}, {}
    for name, path in paths.items():
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs[name] = {value.name: value.shape for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]

        def one(feed, session=session, names=names):  # type: ignore[no-untyped-def]
            return dict(zip(names, session.run(names, dict(feed)), strict=True))

        run[name] = one
    return Host(inputs, run)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_in_chunks_and_decoding_equal_the_forward_pass(
    tmp_path: Path, family: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn, "CHUNK_TOKENS", 8)
    source = FAMILIES[family](tmp_path / "source")
    paths, wanted = drawn(tmp_path / "out", source, precision)
    running = host(paths)
    found = [running.prompt(IDS[:22]), *(running.token(token) for token in IDS[22:])]
    assert running.length == len(IDS)
    assert np.abs(np.stack(found) - wanted[21:]).max() <= LIMIT * np.abs(wanted).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shape_is_fixed_and_every_operator_is_standard(tmp_path: Path, family: str) -> None:
    paths, _ = drawn(tmp_path / "out", FAMILIES[family](tmp_path / "source"), "int4")
    for name in ("qnn_prefill", "qnn_decode"):
        model = ir.load(paths[name])
        assert model.graph.opset_imports[""] == 23
        contrib = {node.op_type for node in model.graph if node.domain}
        # The one exception: QNN keeps its blocks packed, a QDQ pair per block it does not take.
        assert contrib <= {"MatMulNBits"}
        for value in (*model.graph.inputs, *model.graph.outputs):
            assert value.shape is not None
            assert all(isinstance(size, int) for size in value.shape)
    assert paths["qnn_prefill"].read_bytes().count(b"lm_head") == 0


def test_what_an_npu_has_no_product_for_is_refused(tmp_path: Path) -> None:
    gguf = tiny.write_gguf(tmp_path / "m.gguf", tiny.TINY)
    with pytest.raises(Incompatible, match=r"block minima; use --precision int4"):
        drawn(tmp_path / "one", gguf, "exact")
    experts = tiny_archs.write(tmp_path / "source", tiny_archs.QWEN3_MOE)
    with pytest.raises(Incompatible, match="only the CPU runs"):
        drawn(tmp_path / "two", experts, "int4")


def test_export_adds_the_graphs_and_what_their_check_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    source = tiny.write_folder(tmp_path / "source", tiny.UNTIED)
    out = str(tmp_path / "out")
    assert main(["export", str(source), "-o", out, "--precision", "int4", "--qnn"]) == 0
    found = verify(Path(out))
    assert set(found.graphs) == {"native", "portable", "qnn_embed", "qnn_prefill", "qnn_decode"}
    assert {graph.data for graph in found.graphs.values()} == {"onnx/model_q4.onnx_data"}
    assert 0 <= found.self_check["qnn_error"] <= qnn.LIMIT
    monkeypatch.setattr("sys.stdin", None)
    assert main(["run", out, "the fox", "--raw", "-n", "3", "-t", "0"]) == 0


def test_graphs_that_compute_something_else_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm_export.targets.host.MASKED", 0.0)
    source = tiny.write_folder(tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(EdgellmError, match="leave out --qnn") as caught:
        export_bundle(Job(source, recipe("int8"), Source("x"), "x", qnn=True), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "edgellm.json").exists()
