"""The graph for long prompts: products as they should be, a cache nearly the native graph's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tiny_architectures
import tiny_archs
import tiny_models as tiny
from tiny_adapters import write_adapter

from edgellm.bundle.manifest import Source
from edgellm.device import detect
from edgellm.errors import MemoryShort, UsageError
from edgellm.hub import read_adapter
from edgellm.runtime import session as sessions
from edgellm.runtime.decode import prefill
from edgellm.runtime.local import load, open_session
from edgellm.runtime.opened import open_folder
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm.stream import Done, Request, Sampling, Start, complete
from edgellm_export import prefill as prefill_graph
from edgellm_export import rotated
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.checks import SelfCheckFailed
from edgellm_export.data import DataFile
from edgellm_export.graph import FLOAT, Graph, Value
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import recipe
from edgellm_export.rotated import Rotated
from edgellm_export.weights import Dense, Float32

IDS = np.random.default_rng(7).integers(3, tiny.vocab_size(), 60).tolist()
Write = Callable[[Path], Path]
Product = Callable[[Graph, Value, Rotated], Value]
FAMILIES: dict[str, Write] = {
    "llama": lambda folder: tiny.write_folder(folder, tiny.TINY),
    **{
        name: (lambda folder, name=name: tiny_architectures.write_folder(folder, name))
        for name in tiny_architectures.CONFIGS
    },
    **{
        name: (lambda folder, config=config: tiny_archs.write(folder, config))
        for name, config in {
            "gemma2": tiny_archs.GEMMA2,
            "gemma3": tiny_archs.GEMMA3,
            "phi3": tiny_archs.PHI3,
            "phi3-long": tiny_archs.LONG_PHI3,
            "moe": tiny_archs.QWEN3_MOE,
        }.items()
    },
}


def export(folder: Path, source: Path, precision: str = "fp32", **more: Any) -> Path:
    """The bundle with a graph for long prompts; its self-check has passed."""
    folder.mkdir()
    job = Job(source, recipe(precision), Source("x"), "tiny", fast_prefill=True, **more)
    export_bundle(job, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefill")
    return export(folder / "out", tiny.write_folder(folder / "source", tiny.TINY))


@pytest.fixture
def short_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LONG_PROMPT_TOKENS", 8)


def opened(folder: Path, **options: Any) -> Session:
    return open_session(open_folder(folder), LoadOptions(threads=1, **options))


def last_logits(session: Session, through: Session | None) -> Float32:
    return prefill(session, session.new_cache(len(IDS)), IDS, through).copy()


def apart(found: Float32, wanted: Float32) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("product", [rotated.product, rotated.uneven_product])
@pytest.mark.parametrize("inner", [1, 24, 64, 192, 576])
def test_a_product_is_the_matrix_product(tmp_path: Path, inner: int, product: Product) -> None:
    rng = np.random.default_rng(inner)
    weight = rng.standard_normal((40, inner)).astype(np.float32)
    x = rng.standard_normal((1, 33, inner)).astype(np.float32)
    x[0, 7] = 0
    if inner > 100:
        x[0, :, 3] *= 100  # what a row with one scale would lose everything beside
    g = Graph("g", "weights")
    with DataFile(tmp_path / "weights") as data:
        stored = rotated.store_rotated(data, "m", Dense(weight.shape, "float32", lambda: weight))
    given = g.input("x", FLOAT, (1, "t", inner))
    g.output("y", product(g, given, stored), FLOAT, (1, "t", 40))
    g.save(tmp_path / "g.onnx")
    (found,) = load_onnxruntime().InferenceSession(tmp_path / "g.onnx").run(None, {"x": x})
    wanted = x @ weight.T
    assert (found[0, 7] == 0).all()
    assert np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()) < 0.02


def test_small_rows_beside_a_huge_one_survive_with_scales_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((40, 64)).astype(np.float32)
    x = rng.standard_normal((1, 9, 64)).astype(np.float32)
    x[0, 0] *= 10_000
    g = Graph("g", "weights")
    with DataFile(tmp_path / "weights") as data:
        stored = rotated.store_rotated(data, "m", Dense(weight.shape, "float32", lambda: weight))
    given = g.input("x", FLOAT, (1, "t", 64))
    for name, product in (("one", rotated.product), ("own", rotated.uneven_product)):
        g.output(name, product(g, given, stored), FLOAT, (1, "t", 40))
    g.save(tmp_path / "g.onnx")
    one, own = load_onnxruntime().InferenceSession(tmp_path / "g.onnx").run(None, {"x": x})
    wanted = (x @ weight.T)[0, 1:]
    assert apart(own[0, 1:], wanted) < 0.05
    assert apart(one[0, 1:], wanted) > 0.5


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_turning_twice_is_not_turning(size: int) -> None:
    matrix = rotated.hadamard(size)
    assert matrix.shape == (size, size)
    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-6)


@pytest.mark.usefixtures("short_is_long")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_that_it_filled_is_nearly_the_native_one(tmp_path: Path, family: str) -> None:
    session = opened(export(tmp_path / "out", FAMILIES[family](tmp_path / "source")))
    filler = session.filler(len(IDS))
    assert filler is not None
    found = apart(last_logits(session, filler), last_logits(session, None))
    assert 0 < found < 0.1


def test_it_has_no_logits_and_nothing_that_only_they_need(bundle: Path) -> None:
    graph = ir.load(bundle / "onnx" / "prefill.onnx").graph
    layers = tiny.TINY.layers
    kinds = [node.op_type for node in graph]
    assert {value.name.split(".")[0] for value in graph.outputs} == {"present"}
    assert len(graph.outputs) == 2 * layers
    assert {value.name for value in graph.inputs if "past" not in value.name} == {
        "input_ids",
        "last_position",
        "total_positions",
    }
    # Behind the last layer's attention nothing leads to the cache.
    assert kinds.count("DynamicQuantizeMatMul") == 3 * (layers - 1) + 1
    assert kinds.count("MatMulIntegerToFloat") == layers - 1  # behind the gate
    assert "FusedMatMul" not in kinds


def test_only_a_long_prompt_goes_through_it(bundle: Path) -> None:
    session = opened(bundle)
    limit = sessions.LONG_PROMPT_TOKENS
    assert session.filler(limit - 1) is None
    assert not session.fills_apart(limit - 1)
    filler = session.filler(limit)
    assert filler is not None
    assert filler is session.filler(limit + 1)
    assert session.has_filler


def test_a_bundle_without_it_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    export_bundle(Job(source, recipe("fp32"), Source("x"), "tiny"), folder)
    session = opened(folder)
    assert session.filler(1000) is None
    assert not session.fills_apart(1000)
    assert not list((folder / "onnx").glob("prefill*"))


@pytest.mark.usefixtures("short_is_long")
def test_an_answer_counts_its_weights_and_reuses_its_cache(bundle: Path) -> None:
    request = Request(prompt="the quick brown fox jumps over the lazy dog " * 3, max_tokens=4)
    request = replace(request, sampling=Sampling(temperature=0))
    with load(str(bundle), LoadOptions(threads=1)) as model:
        plain = model.bundle.plan(100).weights_mb
        first = complete(model.stream(request))
        again = complete(model.stream(request))
    weights = json.loads((bundle / "edgellm.json").read_text())["weight_bytes"]["prefill"]
    assert first.text == again.text
    assert first.memory is not None
    assert first.memory.weights_mb - plain == pytest.approx(1.1 * weights / 1e6)
    assert again.usage.cached_tokens == first.usage.prompt_tokens - 1


@pytest.mark.usefixtures("short_is_long")
def test_where_memory_is_short_for_it_the_prompt_is_read_without(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt="the quick brown fox jumps over the lazy dog " * 3, max_tokens=4)
    with load(str(bundle), LoadOptions(threads=1)) as model:
        tokens = len(model.bundle.encode(request)) + request.max_tokens
        enough_mb = model.bundle.plan(tokens).total_mb
        monkeypatch.setattr(detect, "rss_mb", lambda: 0.0)
        monkeypatch.setattr(detect, "available_memory_mb", lambda: enough_mb)
        start, *_, done = model.stream(request)
        assert not model._session.has_filler
        monkeypatch.setattr(detect, "available_memory_mb", lambda: 1.0)
        model.forget()
        with pytest.raises(MemoryShort, match="are available"):
            next(iter(model.stream(request)))
    assert isinstance(start, Start)
    assert isinstance(done, Done)
    (line,) = start.notices
    assert line.startswith("reading the prompt slowly: fast prefill lacks ")


@pytest.mark.usefixtures("short_is_long")
def test_hidden_states_come_from_the_native_graph(bundle: Path) -> None:
    request = Request(prompt="the quick brown fox jumps over the lazy dog", max_tokens=3)
    request = replace(request, sampling=Sampling(temperature=0), observe=True)
    with load(str(bundle), LoadOptions(threads=1)) as model:
        *_, done = model.stream(request)
    assert isinstance(done, Done)
    assert done.hidden is not None
    assert len(done.hidden.prompt_mean) == tiny.TINY.hidden


@pytest.mark.usefixtures("short_is_long")
def test_an_adapter_at_run_time_changes_it_too(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    parts = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    adapter = write_adapter(tmp_path / "adapter", open_checkpoint(source), parts)
    room = export(tmp_path / "out", source, lora=adapter, lora_at_run_time=True)
    assert read_adapter(adapter)
    with_it, without = opened(room, lora=adapter), opened(room)
    found, wanted = (last_logits(with_it, s) for s in (with_it.filler(len(IDS)), None))
    assert apart(found, wanted) < 0.1 < apart(found, last_logits(without, None))


def test_the_manifest_says_what_it_costs(bundle: Path) -> None:
    manifest = json.loads((bundle / "edgellm.json").read_text())
    assert manifest["recipe"]["prefill"] == prefill_graph.WORDS
    measured = manifest["self_check"]["prefill"]
    assert 0 < measured["kl"] < prefill_graph.KL_LIMIT
    assert 0 < measured["top1"] <= 1


def test_one_that_costs_too_much_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotated, "LARGEST", 1)
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    with pytest.raises(SelfCheckFailed, match="prefill graph"):
        export(tmp_path / "out", source)
    assert not (tmp_path / "out" / "edgellm.json").exists()


def test_float16_activations_have_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--fast-prefill is for CPUs"):
        Job(tmp_path, recipe("q4f16"), Source("x"), "tiny", fast_prefill=True)
