"""KV caches of float16 and int8: close to float32, alike however fed, measured and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_architectures
import tiny_archs
import tiny_models as tiny

from edgellm.bundle.manifest import Manifest, Source
from edgellm.bundle.open import verify
from edgellm.cli import main
from edgellm.errors import EdgellmError, Incompatible, UsageError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import prefill
from edgellm.runtime.local import LocalBackend, load
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm.stream import Done, Request, Sampling, Start, complete
from edgellm_export import arch, io
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.data import DataFile
from edgellm_export.drawing import Model
from edgellm_export.fidelity import measure
from edgellm_export.graph import EXACT
from edgellm_export.kv import FLOAT32_KV, KVType, kv_dtype
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.quantize import kv
from edgellm_export.recipe import recipe
from edgellm_export.store import WeightStore
from edgellm_export.verify import CACHE_LIMITS
from edgellm_export.weights import Float32

IDS = np.random.default_rng(7).integers(3, tiny.vocab_size(), 60).tolist()
DTYPES = ["float16", "int8"]
every_type = pytest.mark.parametrize("dtype", DTYPES)
# Against a float32 cache, relative to the largest logit, and as a mean KL.
NEAR = {"float16": (5e-3, 1e-5), "int8": (0.05, 1e-3)}
WORDS = {"fp16": "float16", "int8": "int8"}
BYTES = {"float32": 4, "float16": 2, "int8": 1}


def model(folder: Path, source: Path) -> Model:
    folder.mkdir(parents=True)
    checkpoint = open_checkpoint(source)
    architecture = arch.find(checkpoint.config["model_type"])
    with DataFile(folder / "weights.onnx_data") as data:
        weights = architecture.store(WeightStore(checkpoint, recipe("fp32"), data))
    return Model(architecture, weights, data.path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("small")
    return model(folder / "out", tiny.write_folder(folder / "source", tiny.WIDE_HEADS))


def kind(of: Model, dtype: str, ids: list[int] = IDS) -> KVType:
    if dtype == "int8":
        return kv.int8(of, np.array([ids]), lambda line: None)
    return KVType(kv_dtype({"float16": "fp16", "float32": "fp32"}[dtype], "float32"))


def opened(of: Model, dtype: str) -> Session:
    path = of.data.with_name(f"{dtype}.onnx")
    of.built(path, io.native, EXACT, kind(of, dtype)).save(path)
    return Session(path, replace(of.shape, kv_dtype=kv_dtype_of(dtype)), LoadOptions(threads=1))


def kv_dtype_of(dtype: str) -> str:
    assert dtype in BYTES
    return dtype


def one_pass(session: Session, ids: list[int] = IDS) -> Float32:
    return session.forward(ids, range(len(ids)), KVCache(session.shape, len(ids))).copy()


def apart(found: Float32, wanted: Float32) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@every_type
def test_a_smaller_cache_computes_nearly_the_same(small: Model, dtype: str) -> None:
    wanted = one_pass(opened(small, "float32"))
    session = opened(small, dtype)
    cache = KVCache(session.shape, len(IDS))
    assert cache.nbytes * 4 // BYTES[dtype] == KVCache(small.shape, len(IDS)).nbytes
    found = np.stack([session.forward([token], [0], cache)[0].copy() for token in IDS])
    error, kl = NEAR[dtype]
    assert 0 < apart(found, wanted) < error
    assert 0 < measure(wanted, found).kl < kl


@every_type
def test_chunks_single_tokens_and_growing_buffers_equal_one_pass(
    small: Model, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(small, dtype)
    wanted = one_pass(session)
    cache = KVCache(session.shape, 1)
    single = [session.forward([token], [0], cache)[0].copy() for token in [*IDS, *IDS[:10]]]
    assert cache.generation == 1
    assert apart(np.stack(single[: len(IDS)]), wanted) < CACHE_LIMITS[dtype]
    for chunk in (1, 7, 59):
        monkeypatch.setattr("edgellm.runtime.decode.CHUNK_TOKENS", chunk)
        last = prefill(session, KVCache(session.shape, len(IDS)), IDS)
        assert apart(last[None], wanted[-1:]) < CACHE_LIMITS[dtype]


@every_type
def test_a_rolled_back_cache_remembers_nothing_of_the_wrong_turn(small: Model, dtype: str) -> None:
    session = opened(small, dtype)
    wanted = one_pass(session)
    wrong = [(token + 1) % tiny.vocab_size() for token in IDS]
    cache = KVCache(session.shape, len(IDS))
    session.forward([*IDS[:19], *wrong[19:]], [], cache)
    assert cache.keep_common(IDS) == 19
    found = session.forward(IDS[19:], range(len(IDS) - 19), cache)
    assert apart(found, wanted[19:]) < CACHE_LIMITS[dtype]
    # What the limit must tell apart: one position of the cache that is another token's.
    other = one_pass(session, [*IDS[:10], wrong[10], *IDS[11:]])
    assert apart(other[11:], wanted[11:]) > 2 * CACHE_LIMITS[dtype]


def test_steps_hold_at_positions_that_calibration_has_not_seen(small: Model) -> None:
    """What a pair of channels holds turns with the position; its length does not."""
    keys = np.random.default_rng(0).standard_normal((2, 9, 32)).astype(np.float32)
    angle = np.float32(1.234)
    turned = keys.copy()
    for i in range(8):
        a, b = keys[..., i], keys[..., 8 + i]
        turned[..., i] = a * np.cos(angle) - b * np.sin(angle)
        turned[..., 8 + i] = a * np.sin(angle) + b * np.cos(angle)
    one, two = kv._magnitude(keys.copy(), 16), kv._magnitude(turned, 16)
    assert np.allclose(one, two, atol=1e-5)
    assert np.array_equal(one[..., 16:], np.abs(keys[..., 16:]))
    assert (one[..., :16] >= np.abs(keys[..., :16]) - 1e-6).all()


def test_steps_cover_every_key_and_value_of_the_text(small: Model) -> None:
    steps = kind(small, "int8").scales
    session = opened(small, "float32")
    cache = KVCache(session.shape, len(IDS))
    session.forward(IDS, [], cache)
    # A native graph on a float32 cache has its keys scaled, by the root of the scores' scale.
    scales = (small.shape.head_dim**0.25, 1.0)
    for i, buffer in enumerate(cache.buffers):
        largest = np.abs(buffer[0, :, : len(IDS)]).max(axis=1) * scales[i % 2]
        codes = largest / steps[i // 2][i % 2]
        assert codes.max() <= 127.01
        assert codes.max() > 60


def test_the_last_window_is_not_calibrated_on(small: Model) -> None:
    windows = np.array([IDS, [3] * len(IDS)])
    both = kv.int8(small, windows, lambda line: None)
    alone = kv.int8(small, windows[:1], lambda line: None)
    for one, other in zip(both.scales, alone.scales, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@every_type
def test_the_portable_graph_keeps_the_same_cache(small: Model, dtype: str) -> None:
    path = small.data.with_name(f"portable_{dtype}.onnx")
    small.built(path, io.portable, EXACT, kind(small, dtype)).save(path)
    graph = load_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape = small.shape
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), dtype)
    names = [value.name for value in graph.get_inputs()]
    past = {name: empty for name in names if name.startswith("past")}
    found = []
    for start, stop in ((0, 20), (20, 21), (21, len(IDS))):
        feed = {"input_ids": np.array([IDS[start:stop]])}
        feed["attention_mask"] = np.ones((1, stop), np.int64)
        outputs = graph.run(None, {**feed, **past})
        named = dict(zip((o.name for o in graph.get_outputs()), outputs, strict=True))
        found.append(named.pop("logits")[0])
        past = {name.replace("present", "past_key_values"): v for name, v in named.items()}
    assert past["past_key_values.0.key"].dtype == np.dtype(dtype)
    wanted = one_pass(opened(small, dtype))
    assert apart(np.concatenate(found), wanted) < CACHE_LIMITS[dtype]


def exported(source: Path, out: Path, name: str) -> Manifest:
    out.mkdir()
    job = Job(source, recipe("int8"), Source("test:tiny"), "tiny", kv=name)
    return export_bundle(job, out)


FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "gemma2": lambda f: tiny_archs.write(f, tiny_archs.GEMMA2),  # window, soft cap
    "gemma3": lambda f: tiny_archs.write(f, tiny_archs.GEMMA3),  # two tables, one kv head
    "phi3": lambda f: tiny_archs.write(f, tiny_archs.PHI3),
    **{
        name: (lambda f, name=name: tiny_architectures.write_folder(f, name))
        for name in ("qwen3", "smollm3")  # heads apart; layers without RoPE
    },
}


@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_attention_takes_every_cache(tmp_path: Path, family: str, name: str) -> None:
    made = exported(FAMILIES[family](tmp_path / "source"), tmp_path / "out", name)
    found = made.self_check["kv_cache"]
    assert found["dtype"] == made.shape.kv_dtype == WORDS[name]
    assert 0 <= found["kl"] <= kv.KL_LIMIT
    assert made.self_check["cache_error"] <= CACHE_LIMITS[made.shape.kv_dtype]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    source = tiny.write_folder(folder / "source", tiny.TINY)
    for name in ("fp32", "fp16", "int8"):
        exported(source, folder / name, name)
    return {name: folder / name for name in ("fp32", "fp16", "int8")}


def test_a_bundle_says_what_its_cache_is_and_costs(bundles: Mapping[str, Path]) -> None:
    plain = verify(bundles["fp32"])
    assert "kv_cache" not in plain.self_check
    assert "kv_cache" not in plain.recipe
    made = verify(bundles["int8"])
    assert made.shape.kv_dtype == "int8"
    assert "calibrated" in made.recipe["kv_cache"]
    cost = made.self_check["kv_cache"]
    assert cost["tokens"] == tiny.TINY.context
    assert 0 < cost["kl"] < 1e-3
    # A cache is measured with float32 activations: rounding these would hide a float16 cache.
    assert verify(bundles["fp16"]).self_check["kv_cache"]["kl"] < cost["kl"] / 10
    names = sorted(path.name for path in (bundles["int8"] / "onnx").iterdir())
    assert names == [
        "edgellm_quantized.onnx",
        "model_quantized.onnx",
        "model_quantized.onnx_data",
    ]


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_show_prints_what_the_cache_costs(
    bundles: Mapping[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(bundles[name])]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "dtype" in x]
    assert line.split()[:3] == ["kv_cache", "dtype", f"{kv_dtype(name, 'float32')},"]
    assert " kl " in line


def answer(backend: LocalBackend, prompt: str) -> tuple[Start, str, Done]:
    events = list(backend.stream(Request(prompt=prompt, max_tokens=20, sampling=Sampling())))
    start, done = events[0], events[-1]
    assert isinstance(start, Start)
    assert isinstance(done, Done)
    return start, complete(iter(events)).text, done


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_a_second_turn_reuses_the_cache_and_says_the_same(
    bundles: Mapping[str, Path], name: str
) -> None:
    with load(str(bundles[name])) as used:
        answer(used, "in the year that the water was")
        answer(used, "in the year that the fox jumps")
        start, text, done = answer(used, "in the year that the water was there")
    assert start.cached_tokens > 0
    with load(str(bundles[name])) as fresh:
        assert answer(fresh, "in the year that the water was there")[1] == text
    with load(str(bundles["fp32"])) as plain:
        other = answer(plain, "in the year that the water was there")[2]
    assert done.memory.kv_mb * 4 / BYTES[WORDS[name]] == pytest.approx(other.memory.kv_mb)


def test_a_manifest_that_lies_about_the_cache_is_refused(small: Model) -> None:
    path = small.data.with_name("lie.onnx")
    small.built(path, io.native, EXACT, FLOAT32_KV).save(path)
    for claimed, words in (("int8", "export the model again"), ("float8", "known are float32")):
        with pytest.raises(Incompatible, match=words) as caught:
            Session(path, replace(small.shape, kv_dtype=claimed), LoadOptions(threads=1))
        assert "\n" not in str(caught.value)


def test_a_cache_that_costs_too_much_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "INT8_MAX", 3)  # so coarse that it is felt
    monkeypatch.setattr("edgellm_export.verify.CACHE_LIMITS", {"int8": 10.0})
    monkeypatch.setattr(kv, "KL_LIMIT", 1e-4)
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    with pytest.raises(EdgellmError, match=r"int8 KV cache.*use --kv fp32"):
        exported(source, tmp_path / "out", "int8")
    assert not (tmp_path / "out" / "edgellm.json").exists()


def test_keys_that_are_not_finite_are_refused(small: Model, monkeypatch: Any) -> None:
    bad = [np.full((2, 32), np.inf, np.float32)] * 4
    monkeypatch.setattr(kv, "_largest", lambda *given: bad)
    with pytest.raises(EdgellmError, match="not finite"):
        kv.int8(small, np.array([IDS]), lambda line: None)


def test_an_unknown_cache_type_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="'int4'; choose one of fp32, fp16, int8"):
        kv_dtype("int4", "float32")


def test_the_command_line_exports_a_cache_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    out = str(tmp_path / "out")
    code = main(["export", str(source), "-o", out, "--kv", "int8", "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["self_check"]["kv_cache"]["dtype"] == "int8"
    assert main(["export", str(source), "-o", out + "2", "--kv", "int2"]) == 2
    assert not (tmp_path / "out2").exists()
