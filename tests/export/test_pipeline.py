"""From a checkpoint to a bundle: the whole folder or nothing that loads."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models as tiny
from hub_fakes import start_python
from tiny_models import TINY, UNTIED, Kind, make_bundle

from edgellm.bundle import generation, manifest
from edgellm.bundle.manifest import MANIFEST_NAME, Source
from edgellm.bundle.open import verify
from edgellm.errors import Corrupt, EdgellmError, Incompatible, StorageFailed
from edgellm.hub import HubOptions, Silent, Store, open_bundle
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import names, recipe

PLAIN = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
# "exact" names what it found: here float32.
SUFFIXES = {
    "exact": "",
    "compact": "",
    "int2": "_q4",
    "int4": "_q4",
    "int4_block128": "_q4",
    "int8": "_quantized",
    "fp16": "_fp16",
    "fp32": "",
    "q4f16": "_q4f16",
}
# Recipes that round every matrix.
INTEGER_EVERYWHERE = ("compact", "int2", "int4", "int4_block128", "int8", "q4f16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("source"), UNTIED)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", TINY)


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_every_recipe_has_its_suffix() -> None:
    assert set(names()) == set(SUFFIXES)


@pytest.mark.parametrize(("precision", "suffix"), SUFFIXES.items())
def test_a_bundle_has_the_files_of_the_contract_and_no_other(
    folder: Path, tmp_path: Path, precision: str, suffix: str
) -> None:
    made = make_bundle(folder, tmp_path / "out", precision)
    graphs = {f"onnx/model{suffix}.onnx", f"onnx/edgellm{suffix}.onnx"}
    graphs.add(f"onnx/model{suffix}.onnx_data")
    assert files(tmp_path / "out") == PLAIN | graphs | {MANIFEST_NAME}
    assert set(made.files) == PLAIN | graphs
    assert made.graphs["native"].path == f"onnx/edgellm{suffix}.onnx"
    assert made.graphs["portable"].path == f"onnx/model{suffix}.onnx"
    assert {graph.data for graph in made.graphs.values()} == {f"onnx/model{suffix}.onnx_data"}
    assert made.recipe["name"] == precision
    layers = {kind: graph.hidden_layer for kind, graph in made.graphs.items()}
    assert layers == {"native": 1, "portable": None}


def test_the_manifest_tells_the_truth(gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "my-model"
    out.mkdir()
    origin = Source("hf:org/name", revision="abc", sha256="0" * 64)
    returned = export_bundle(Job(gguf, None, origin, "my-model"), out)
    found = manifest.read(out)
    assert found == verify(out)
    assert found.to_json() == returned.to_json()
    for name, record in found.files.items():
        raw = (out / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(raw), hashlib.sha256(raw).hexdigest()), name
    assert found.name == "my-model"
    assert found.source == Source("hf:org/name", "abc", "0" * 64, licence="apache-2.0")
    assert found.recipe["name"] == "exact"
    shape = found.shape
    assert (shape.num_hidden_layers, shape.num_key_value_heads, shape.head_dim) == (2, 2, 16)
    assert (shape.vocab_size, shape.context_length) == (tiny.vocab_size(), TINY.context)
    assert shape.parameters == sum(values.size for values in tiny.weights(TINY).values())
    assert found.self_check["tensors"] == 20


def test_the_producer_is_this_version(gguf: Path, tmp_path: Path) -> None:
    import edgellm

    assert make_bundle(gguf, tmp_path / "out").producer == f"edgellm {edgellm.__version__}"


def test_layers_and_weights_are_counted_while_they_are_done(gguf: Path, tmp_path: Path) -> None:
    heard: dict[tuple[str, int], list[int]] = {}

    @contextmanager
    def steps(label: str, total: int) -> Iterator[Any]:
        yield heard.setdefault((label, total), []).append

    export_bundle(Job(gguf, None, Source("x"), "x"), tmp_path, steps=steps)
    layers = heard.pop(("converting layers", 2))
    assert set(layers) == {0, 1, 2}
    assert layers == sorted(layers)
    assert heard == {("checking weights", 20): list(range(1, 21))}


def test_the_licence_of_the_alias_goes_before_that_of_the_file(gguf: Path, tmp_path: Path) -> None:
    job = Job(gguf, None, Source("x", licence="mit"), "x")
    assert export_bundle(job, tmp_path).source.licence == "mit"


def test_the_default_keeps_blocks_and_makes_floats_int8(
    gguf: Path, folder: Path, tmp_path: Path
) -> None:
    assert make_bundle(gguf, tmp_path / "a").recipe["name"] == "exact"
    assert make_bundle(folder, tmp_path / "b").recipe["name"] == "int8"


def test_the_same_checkpoint_is_the_same_bundle(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_bundle(folder, tmp_path / name / "m", "int4")
    first, second = (tmp_path / name / "m" / MANIFEST_NAME for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F16, Kind.F32])
def test_an_exact_import_adds_no_weight(tmp_path: Path, kind: Kind) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", TINY, kind)
    out = tmp_path / "out"
    made = make_bundle(source, out)
    blocks = {Kind.Q4_0: 18 / 32, Kind.Q4_1: 20 / 32, Kind.Q8_0: 34 / 32, Kind.F16: 2, Kind.F32: 4}
    tensors = tiny.weights(TINY)
    table = tensors.pop("model.embed_tokens.weight")
    wanted = blocks[Kind.Q8_0] * table.size
    wanted += sum(blocks[kind] * v.size if v.ndim == 2 else 4 * v.size for v in tensors.values())
    wanted += 2 * 4 * TINY.context * TINY.width / 2  # rotary tables
    (data,) = {graph.data for graph in made.graphs.values()}
    assert wanted <= made.files[data].bytes <= wanted + 64 * 40


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (Kind.Q4_0, "_q4"),
        (Kind.Q4_1, "_q4"),
        (Kind.Q5_0, "_quantized"),
        (Kind.Q8_0, "_quantized"),
        (Kind.F16, "_fp16"),
        (Kind.BF16, ""),
        (Kind.F32, ""),
    ],
)
def test_an_exact_import_is_named_after_what_the_layers_hold(
    tmp_path: Path, kind: Kind, suffix: str
) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", TINY, kind)
    made = make_bundle(source, tmp_path / "out")
    assert made.graphs["native"].path == f"onnx/edgellm{suffix}.onnx"
    assert made.graphs["portable"].path == f"onnx/model{suffix}.onnx"
    assert {graph.data for graph in made.graphs.values()} == {f"onnx/model{suffix}.onnx_data"}


@pytest.mark.weights
def test_an_exact_import_of_the_real_file_is_at_most_six_percent_larger(
    smollm2_bundle: Path, smollm2_gguf: Path
) -> None:
    total = sum((smollm2_bundle / name).stat().st_size for name in files(smollm2_bundle))
    assert total <= 1.06 * smollm2_gguf.stat().st_size


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def test_other_runtimes_find_what_they_look_for(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_bundle(folder, out, "int8")
    config = read(out, "config.json")
    # transformers.js and optimum need these three; a missing one means another model's layout.
    assert (config["num_key_value_heads"], config["num_hidden_layers"]) == (2, 2)
    assert config["head_dim"] == 16
    assert config["model_type"] == "llama"
    formats = config["transformers.js_config"]["use_external_data_format"]
    assert formats == {"model_quantized.onnx": 1}
    genai = read(out, "genai_config.json")
    decoder = genai["model"]["decoder"]
    assert genai["model"]["type"] == "llama"
    assert genai["model"]["vocab_size"] == tiny.vocab_size()
    assert genai["model"]["context_length"] == UNTIED.context
    assert (genai["model"]["bos_token_id"], genai["model"]["eos_token_id"]) == (1, 2)
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (16, 2)
    assert (decoder["hidden_size"], decoder["num_attention_heads"]) == (64, 4)
    assert genai["search"]["past_present_share_buffer"] is True
    assert genai["search"]["max_length"] <= genai["model"]["context_length"]
    model = ir.load(out / decoder["filename"])
    inputs = {str(value.name): value for value in model.graph.inputs}
    outputs = {str(value.name) for value in model.graph.outputs}
    layers = range(decoder["num_hidden_layers"])
    named = decoder["inputs"]
    past = {named[key] % i for key in ("past_key_names", "past_value_names") for i in layers}
    assert set(inputs) == past | {named["input_ids"], named["attention_mask"]}
    named = decoder["outputs"]
    present = {named[k] % i for k in ("present_key_names", "present_value_names") for i in layers}
    assert outputs == present | {named["logits"]}
    for name in past:
        # transformers.js resolves this symbol only, and wants numbers for heads and width.
        shape = [d if isinstance(d, int) else str(d.value) for d in inputs[name].shape or ()]
        assert shape == ["batch_size", 2, "past_sequence_length", 16]


def test_the_largest_cache_of_other_runtimes_is_bounded(tmp_path: Path) -> None:
    long = tiny.Sizes(context=16384)
    make_bundle(tiny.write_folder(tmp_path / "source", long), tmp_path / "out", "fp32")
    genai = read(tmp_path / "out", "genai_config.json")
    assert (genai["model"]["context_length"], genai["search"]["max_length"]) == (16384, 4096)


def test_graphs_point_to_the_data_file_beside_them(folder: Path, tmp_path: Path) -> None:
    made = make_bundle(folder, tmp_path / "out", "int4")
    for graph in made.graphs.values():
        model = ir.load(tmp_path / "out" / graph.path)
        tensors = [v.const_value for v in model.graph.initializers.values()]
        external = [t for t in tensors if isinstance(t, ir.ExternalTensor)]
        assert {str(t.location) for t in external} == {"model_q4.onnx_data"}
        # All weights are outside: what is left inside are a few numbers.
        assert made.files[graph.path].bytes < 60_000


def test_what_ends_an_answer_is_found_without_a_generation_config(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", TINY)
    (source / "generation_config.json").unlink()
    make_bundle(source, tmp_path / "out", "fp32")
    assert generation.read(tmp_path / "out").eos_token_ids == {2}
    assert read(tmp_path / "out", "genai_config.json")["model"]["eos_token_id"] == 2


def test_the_models_own_settings_go_before_recommended_ones(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", TINY)
    own = {"eos_token_id": [2, 0], "temperature": 0.5, "top_k": None}
    (source / "generation_config.json").write_text(json.dumps(own))
    sampling = {"temperature": 0.2, "top_p": 0.9, "top_k": 40, "do_sample": True}
    out = tmp_path / "out"
    out.mkdir()
    export_bundle(Job(source, recipe("fp32"), Source("x"), "x", sampling), out)
    found = generation.read(out)
    assert found.eos_token_ids == {0, 2}
    assert (found.sampling.temperature, found.sampling.top_p) == (0.5, 0.9)
    assert found.sampling.top_k == 40


def refused(source: Path, tmp_path: Path, kind: type[EdgellmError], precision: str) -> str:
    out = tmp_path / "out"
    with pytest.raises(kind) as caught:
        make_bundle(source, out, precision)
    assert not (out / MANIFEST_NAME).exists()
    with pytest.raises(Corrupt, match="not a bundle"):
        verify(out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize("precision", ["fp32", "int4", "exact"])
@pytest.mark.parametrize("name", [DOWN, NORM, "model.embed_tokens.weight"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_refused_by_name(
    tmp_path: Path, precision: str, name: str, bad: float
) -> None:
    values = tiny.weights(TINY)[name].copy()
    values.flat[3] = bad
    source = tiny.write_folder(tmp_path / "source", TINY, changes={name: values})
    assert name in refused(source, tmp_path, Corrupt, precision)


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", TINY, changes={DOWN: None})
    assert DOWN in refused(source, tmp_path, Corrupt, "int4")


def test_a_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    values = np.zeros((TINY.inner, TINY.hidden), np.float32)
    source = tiny.write_folder(tmp_path / "source", TINY, changes={DOWN: values})
    message = refused(source, tmp_path, Corrupt, "int4")
    assert DOWN in message
    assert "(96, 64)" in message
    assert "(64, 96)" in message


def test_an_unused_tensor_is_refused_by_name(tmp_path: Path) -> None:
    changes = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    source = tiny.write_folder(tmp_path / "source", TINY, changes=changes)
    assert "self_attn.q_proj.bias" in refused(source, tmp_path, Incompatible, "fp32")


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", TINY, config={"model_type": "mamba"})
    message = refused(source, tmp_path, Incompatible, "fp32")
    assert "'mamba'" in message
    assert "llama" in message


@pytest.mark.parametrize("precision", names())
@pytest.mark.parametrize("hidden", [40, 48])
def test_widths_that_are_no_multiple_of_a_block_work_or_are_refused(
    tmp_path: Path, precision: str, hidden: int
) -> None:
    odd = tiny.Sizes(hidden=hidden, inner=80, heads=3, kv_heads=1, width=16)
    source = tiny.write_folder(tmp_path / "source", odd)
    if hidden == 48 and precision == "int2":
        message = refused(source, tmp_path, Incompatible, precision)
        assert "width 48 is no multiple of 32, the smallest block of 2 bits" in message
        assert "int4" in message
    elif hidden == 40 and precision in INTEGER_EVERYWHERE:
        message = refused(source, tmp_path, Incompatible, precision)
        assert "model.embed_tokens.weight: its width 40 is no multiple of 16" in message
        assert "fp16" in message
    else:
        make_bundle(source, tmp_path / "out", precision)


@contextmanager
def largest_file(bytes_: int) -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes on Windows")
@pytest.mark.parametrize("bytes_", [0, 1000, 100_000])
def test_a_full_disk_while_weights_are_written_is_one_line(
    folder: Path, tmp_path: Path, bytes_: int
) -> None:
    with largest_file(bytes_):
        message = refused(folder, tmp_path, StorageFailed, "fp32")
    assert str(tmp_path / "out") in message


@pytest.mark.parametrize("victim", ["edgellm.onnx", "model.onnx", "config.json", MANIFEST_NAME])
def test_a_disk_that_fills_up_later_leaves_no_bundle(
    folder: Path, tmp_path: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(real: Any) -> Any:
        def write(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self.name == victim:
                self.touch()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return real(self, *args, **kwargs)

        return write

    monkeypatch.setattr(Path, "write_text", full(Path.write_text))
    monkeypatch.setattr(Path, "write_bytes", full(Path.write_bytes))
    out = tmp_path / "out"
    with pytest.raises(StorageFailed, match="No space left on device"):
        make_bundle(folder, out, "fp32")
    with pytest.raises(Corrupt):
        verify(out)


# Stops a conversion where it is told to, so that it can be killed there.
CONVERT = """
import importlib, sys, time
from pathlib import Path
from edgellm.hub import HubOptions, Silent, Store, open_bundle

home, source, module, name = sys.argv[1:]
owner = importlib.import_module(module)

def stop(*args, **kwargs):
    print("there", flush=True)
    time.sleep(60)

setattr(owner, name, stop)
open_bundle(source, Store(Path(home)), HubOptions(), Silent())
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("edgellm_export.store", "treat"),
        ("edgellm_export.pipeline", "write_configs"),
        ("edgellm_export.verify", "check"),
        ("edgellm.hub.store", "sync_tree"),
    ],
)
def test_a_killed_export_leaves_nothing_loadable_and_the_next_run_works(
    gguf: Path, tmp_path: Path, module: str, name: str
) -> None:
    store = Store(tmp_path / "home")
    child = start_python(CONVERT, str(store.home), str(gguf), module, name)
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert store.names() == []
    (remnant,) = (store.home / "tmp").iterdir()
    made = open_bundle(str(gguf), store, HubOptions(), Silent())
    assert verify(made).recipe["name"] == "exact"
    assert store.names() == [made.name]
    assert not remnant.exists()
