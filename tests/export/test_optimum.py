"""What comes after tracing: weights found, quantized, drawn again and checked. No torch here;
tests/targets/test_optimum_models.py runs the tracer itself."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import hand_traced
import numpy as np
import onnx
import pytest
import tiny_models as tiny
from hand_traced import Hand

from edgellm.bundle import manifest
from edgellm.bundle.manifest import CONCAT, Manifest, Source
from edgellm.errors import EdgellmError, Incompatible, UsageError
from edgellm.runtime import local
from edgellm.runtime.options import LoadOptions
from edgellm.stream import Request, complete
from edgellm_export import optimum
from edgellm_export.checks import SelfCheckFailed
from edgellm_export.optimum import pipeline as traced_pipeline
from edgellm_export.optimum import trace
from edgellm_export.optimum.model import TracedModel
from edgellm_export.optimum.trace import Trace
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.quantize.calibrate import Calibration
from edgellm_export.recipe import recipe

WIDTH = 32
MADE = hand_traced.hand(tiny.vocab_size(), WIDTH, mixed=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of an architecture without a builder."""
    return tiny.write_folder(tmp_path / "source", tiny.TINY, config={"model_type": "hand"})


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """The tracer's place is taken by the hand-made graph, torch's by numpy."""
    made = MADE

    def run(source: Path, work: Path, ids: list[int], interpreter: Path) -> Trace:
        path = hand_traced.write_graph(work / "model.onnx", made)
        return Trace(path, ids, made.logits(ids), 1, WIDTH, 128)

    monkeypatch.setattr(trace, "run", run)
    monkeypatch.setattr(trace, "check_packages", lambda interpreter, source: None)
    return made


def export(source: Path, precision: str | None, out: Path, **job: Any) -> Manifest:
    chosen = recipe(precision) if precision else None
    out.mkdir()
    return export_bundle(Job(source, chosen, Source("hand"), "hand", **job), out)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
@pytest.mark.usefixtures("hand")
def test_a_traced_graph_becomes_a_bundle_that_answers(
    source: Path, tmp_path: Path, precision: str
) -> None:
    found = export(source, precision, tmp_path / "out")
    assert found.shape.architecture == "hand"
    assert (found.shape.num_hidden_layers, found.shape.head_dim) == (1, WIDTH)
    assert {graph.cache for graph in found.graphs.values()} == {CONCAT}
    assert manifest.read(tmp_path / "out") == found
    assert not list((tmp_path / "out").glob("trace-*"))
    with local.load(str(tmp_path / "out"), LoadOptions(threads=1)) as model:
        first = complete(model.stream(Request(prompt="the quick brown", max_tokens=12)))
        again = complete(model.stream(Request(prompt="the quick brown", max_tokens=12)))
    assert again.text == first.text
    assert again.usage.cached_tokens > 0


def test_float32_answers_like_the_traced_model(source: Path, tmp_path: Path, hand: Hand) -> None:
    export(source, "fp32", tmp_path / "out")
    with local.open_logits(str(tmp_path / "out"), LoadOptions(threads=1)) as model:
        ids = model.encode("over the lazy dog in the year that the water was there")
        found = np.concatenate(list(model.logits(ids)))
    wanted = hand.logits(ids)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.usefixtures("hand")
def test_a_tied_matrix_is_stored_once(source: Path, tmp_path: Path) -> None:
    found = export(source, "fp32", tmp_path / "out")
    (data,) = (tmp_path / "out" / "onnx").glob("*_data")
    assert found.shape.parameters == MADE.table.size + WIDTH * WIDTH + WIDTH
    assert data.stat().st_size < 4 * found.shape.parameters + 1000


@pytest.mark.usefixtures("hand")
def test_only_the_asked_rows_of_logits_are_computed(source: Path, tmp_path: Path) -> None:
    found = export(source, "int8", tmp_path / "out")
    native, portable = (
        onnx.load(tmp_path / "out" / found.graphs[name].path, load_external_data=False)
        for name in ("native", "portable")
    )
    assert "logit_rows" in {value.name for value in native.graph.input}
    assert {value.name for value in portable.graph.input} == {
        "input_ids",
        "position_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
    }
    # The plain operators that every build of ONNX Runtime has, and nothing that leads nowhere.
    kinds = {node.op_type for node in portable.graph.node}
    assert "GatherBlockQuantized" not in kinds
    assert "Identity" not in kinds
    assert sum(node.op_type == "MatMulNBits" for node in native.graph.node) == 2


def test_products_are_named_after_their_modules(tmp_path: Path) -> None:
    model = TracedModel(hand_traced.write_graph(tmp_path / "m.onnx", MADE))
    names = {product.name: product.transposed for product in model.products}
    assert names == {"model.embed": False, "model.mixer": True, "lm_head": True}
    assert model.twins["lm_head"] == "model.embed"
    assert model.head is not None
    assert model.head.name == "lm_head"


def test_what_cannot_be_drawn_again_is_named(tmp_path: Path) -> None:
    path = hand_traced.write_graph(tmp_path / "m.onnx", MADE)
    model = onnx.load(path)
    model.graph.node[0].domain = "somebody.else"
    model.opset_import.append(onnx.helper.make_opsetid("somebody.else", 1))
    onnx.save(model, path)
    with pytest.raises(Incompatible, match=r"operator somebody\.else::Gather"):
        TracedModel(path)


def test_a_trace_that_torch_does_not_confirm_is_not_published(
    source: Path, tmp_path: Path, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trace.run
    off = replace(hand, table=np.roll(hand.table, 1, axis=0))

    def lying(source: Path, work: Path, ids: list[int], interpreter: Path) -> Trace:
        return replace(run(source, work, ids, interpreter), logits=off.logits(ids))

    monkeypatch.setattr(trace, "run", lying)
    with pytest.raises(SelfCheckFailed, match="differs from torch"):
        export(source, "fp32", tmp_path / "out")
    assert not (tmp_path / "out" / "edgellm.json").exists()


@pytest.mark.usefixtures("hand")
def test_wrong_integers_are_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The float graph is given other numbers than the bundle stores.
    read = traced_pipeline.StoredWeights.__call__
    monkeypatch.setattr(
        traced_pipeline.StoredWeights, "__call__", lambda self, name: 1.1 * read(self, name)
    )
    with pytest.raises(SelfCheckFailed, match="logits differ"):
        export(source, "int8", tmp_path / "out")


@pytest.mark.parametrize("precision", ["exact", "compact"])
@pytest.mark.usefixtures("hand")
def test_blocks_that_are_not_there_cannot_be_kept(
    source: Path, tmp_path: Path, precision: str
) -> None:
    with pytest.raises(UsageError, match="use int4, int8, fp16 or fp32"):
        export(source, precision, tmp_path / "out")


@pytest.mark.usefixtures("hand")
def test_adapters_and_calibration_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="merged with an adapter"):
        export(source, "int8", tmp_path / "out", lora=tmp_path)
    with pytest.raises(UsageError, match="calibrated"):
        export(source, "int8", tmp_path / "two", calibration=Calibration(tmp_path))


def test_only_folders_without_a_builder_come_here(source: Path, tmp_path: Path) -> None:
    assert optimum.serves(source)
    assert not optimum.serves(tiny.write_folder(tmp_path / "llama", tiny.TINY))
    assert not optimum.serves(tiny.write_gguf(tmp_path / "m.gguf"))
    assert not optimum.serves(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
@pytest.mark.parametrize("precision", [None, "int4", "fp32"])
def test_without_the_extra_one_line_names_it(
    source: Path, tmp_path: Path, precision: str | None
) -> None:
    python = fake_python(tmp_path, "exit 1")
    with pytest.raises(Incompatible) as caught:
        export(source, precision, tmp_path / "out", tracer=python)
    message = str(caught.value)
    assert "'hand' has no builder here" in message
    assert "pip install 'edgellm[cpu,optimum]'" in message
    assert "\n" not in message


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('echo "bad thing" >&2; exit 3', ["could not trace", "'hand'", "bad thing"]),
        (
            'echo \'{"unknown": "optimum-onnx"}\' > "$(dirname "$3")"/traced/answer.json',
            ["'hand' has no builder here", "optimum-onnx does not know it either", "llama"],
        ),
    ],
)
def test_what_optimum_says_no_to_is_told_in_one_line(
    source: Path, tmp_path: Path, body: str, words: list[str]
) -> None:
    python = fake_python(tmp_path, f'[ "$2" = "-c" ] && exit 0\n{body}')
    with pytest.raises(Incompatible) as caught:
        export(source, "int8", tmp_path / "out", tracer=python)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tracer_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgellmError, match="cannot run"):
        export(source, "int8", tmp_path / "out", tracer=tmp_path / "python")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
def test_transformers_sees_config_and_weights_only(source: Path, tmp_path: Path) -> None:
    (source / "modeling_hand.py").write_text("1 / 0")
    (source / "pytorch_model.bin").write_bytes(b"\x80")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_hand.Hand"}
    (source / "config.json").write_text(json.dumps(config))
    seen = tmp_path / "seen"
    python = fake_python(
        tmp_path, f'[ "$2" = "-c" ] && exit 0\ncp -rL "$(dirname "$3")/source" "{seen}"; exit 3'
    )
    with pytest.raises(Incompatible):
        export(source, "int8", tmp_path / "out", tracer=python)
    assert {path.name for path in seen.iterdir()} == {"config.json", "model.safetensors"}
    assert "auto_map" not in json.loads((seen / "config.json").read_text())


def fake_python(folder: Path, body: str) -> Path:
    """An interpreter that does as told: arguments are -P, then -c CODE or SCRIPT JOB."""
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path
