"""An adapter at run time computes what the merged model does, and can be left out or changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tiny_architectures
import tiny_archs
import tiny_models as tiny
from tiny_adapters import write_adapter
from tiny_models import TINY, Kind

from edgellm.bundle.manifest import Source
from edgellm.errors import Incompatible, UsageError
from edgellm.hub import read_adapter
from edgellm.runtime.cache import KVCache
from edgellm.runtime.local import load
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm.stream import Request, Sampling, complete
from edgellm_export.checkpoint.lora import LoraCheckpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import recipe
from edgellm_export.shrink import Shrink

IDS = list(range(5, 25))
ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
ALL = (*ATTENTION, "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
FUSED = ("self_attn.qkv_proj", "mlp.gate_up_proj")


def export(folder: Path, source: Path, precision: str | None = "fp32", **more: Any) -> Path:
    """The bundle in the new `folder`; its self-check has passed."""
    folder.mkdir()
    chosen = recipe(precision) if precision else None
    export_bundle(Job(source, chosen, Source("x"), folder.name, **more), folder)
    return folder


def logits(bundle: Path, adapter: Path | None = None, graph: str = "edgellm") -> np.ndarray:
    path = next((bundle / "onnx").glob(f"{graph}*.onnx"))
    found = json.loads((bundle / "edgellm.json").read_text())["shape"]
    shape = tiny.Shape(**found)
    given = None if adapter is None else read_adapter(adapter)
    session = Session(path, shape, LoadOptions(threads=1), given)
    cache = KVCache(shape, len(IDS))
    first = session.forward(IDS[:12], range(12), cache).copy()
    rest = [session.forward([token], [0], cache).copy() for token in IDS[12:]]
    return np.concatenate([first, *rest])


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def assert_far(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() > 1e-2 * np.abs(wanted).max()


CASES = {
    "llama": (lambda folder: tiny.write_folder(folder, TINY), ALL),
    "llama-attention": (lambda folder: tiny.write_folder(folder, TINY), ATTENTION),
    "phi3": (lambda folder: tiny_archs.write(folder, tiny_archs.PHI3, "F32"), FUSED),
    "gemma3": (lambda folder: tiny_archs.write(folder, tiny_archs.GEMMA3, "F32"), ALL),
    "moe": (lambda folder: tiny_archs.write(folder, tiny_archs.QWEN3_MOE, "F32"), ATTENTION),
    **{
        name: (lambda folder, name=name: tiny_architectures.write_folder(folder, name), ALL)
        for name in ("qwen2", "olmo2", "granite")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_run_time_equals_merged(tmp_path: Path, name: str) -> None:
    write, parts = CASES[name]
    source = write(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", open_checkpoint(source), parts)
    merged = export(tmp_path / "merged", source, lora=adapter)
    room = export(tmp_path / "room", source, lora=adapter, lora_at_run_time=True)
    plain = logits(export(tmp_path / "plain", source))
    assert_close(logits(room, adapter), logits(merged))
    assert_close(logits(room), plain)
    assert_far(logits(room, adapter), plain)


def test_blocks_of_the_base_stay_exact_under_an_adapter(tmp_path: Path) -> None:
    """v is in another format than q and k, so it is a matrix of its own."""
    source = tiny.write_gguf(tmp_path / "m.gguf", TINY, Kind.Q4_1, kinds={"v_proj": Kind.Q8_0})
    base = open_checkpoint(source)
    adapter = write_adapter(tmp_path / "adapter", base, ALL)
    room = export(tmp_path / "room", source, None, lora=adapter, lora_at_run_time=True)
    manifest = json.loads((room / "edgellm.json").read_text())
    assert manifest["self_check"]["exact_tensors"] == manifest["self_check"]["tensors"]
    assert manifest["recipe"]["lora_mode"] == "runtime"
    exact = tiny.build(LoraCheckpoint(base, adapter), "fp32", tmp_path / "merged")
    wanted = tiny.logits(exact, IDS)
    found = logits(room, adapter)
    # The base's products take int8 activations.
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert_far(logits(room), wanted)


def test_another_adapter_of_another_rank_takes_the_same_room(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "base", TINY)
    base = open_checkpoint(source)
    first = write_adapter(tmp_path / "first", base, ALL)
    second = write_adapter(tmp_path / "second", base, ATTENTION, rank=7, seed=12)
    room = export(tmp_path / "room", source, lora=first, lora_at_run_time=True)
    merged = export(tmp_path / "merged", source, lora=second)
    assert_close(logits(room, second), logits(merged))


def test_the_portable_graph_has_standard_inputs_only(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "base", TINY)
    adapter = write_adapter(tmp_path / "adapter", open_checkpoint(source), ALL)
    room = export(tmp_path / "room", source, lora=adapter, lora_at_run_time=True)
    names = {value.name for value in ir.load(room / "onnx" / "model.onnx").graph.inputs}
    assert not any("lora" in str(name) for name in names)


def test_a_loaded_model_answers_with_its_adapter(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "base", TINY)
    adapter = write_adapter(tmp_path / "adapter", open_checkpoint(source), ALL)
    room = export(tmp_path / "room", source, lora=adapter, lora_at_run_time=True)
    merged = export(tmp_path / "merged", source, lora=adapter)
    request = Request(prompt="the quick", max_tokens=12, sampling=Sampling(temperature=0))
    answers = []
    for bundle, chosen in ((room, adapter), (merged, None), (room, None)):
        with load(str(bundle), LoadOptions(threads=1, lora=chosen)) as model:
            answers.append(complete(model.stream(request)).text)
    assert answers[0] == answers[1] != answers[2]


def test_what_has_no_room_is_said(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "base", TINY)
    base = open_checkpoint(source)
    adapter = write_adapter(tmp_path / "adapter", base, ALL)
    less = write_adapter(tmp_path / "less", base, ATTENTION)
    with pytest.raises(Incompatible, match="no room for an adapter; export it again with --lora"):
        logits(export(tmp_path / "plain", source), adapter)
    room = export(tmp_path / "room", source, lora=less, lora_at_run_time=True)
    with pytest.raises(Incompatible, match=r"changes model.layers.0.mlp.down_proj, for which"):
        logits(room, adapter)
    wide = open_checkpoint(tiny.write_folder(tmp_path / "wide", tiny.SUPER))
    other = write_adapter(tmp_path / "other", wide, ATTENTION)
    with pytest.raises(Incompatible, match=r"q_proj.lora_A is \(4, 256\), this model needs"):
        logits(room, other)


def test_a_device_reads_adapters_without_the_exporters_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_checkpoint(tiny.write_folder(tmp_path / "base", TINY))
    adapter = write_adapter(tmp_path / "adapter", base, ATTENTION)
    for name in [name for name in sys.modules if name.partition(".")[0] == "edgellm_export"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("onnx_ir", "onnx", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(read_adapter(adapter)) == 2 * 2 * TINY.layers


def test_layers_that_go_have_no_room(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "base", TINY)
    with pytest.raises(UsageError, match="leave out --drop-layers"):
        Job(source, None, Source("x"), "x", shrink=Shrink(drop_layers=1), lora_at_run_time=True)
    moe = tiny_archs.write(tmp_path / "moe", tiny_archs.QWEN3_MOE, "F32")
    expert = write_adapter(tmp_path / "adapter", open_checkpoint(moe), ["mlp.experts.0.up_proj"])
    with pytest.raises(Incompatible, match="takes no adapter at run time; use --lora-mode merge"):
        export(tmp_path / "out", moe, lora=expert, lora_at_run_time=True)
