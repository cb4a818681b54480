"""The Llama graphs against the numpy forward pass on the same weights, read back from the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import ALL_KV_HEADS, LONG, ONE_KV_HEAD, TINY, UNTIED, WIDE_HEADS, Built, Kind

from edgellm.errors import Incompatible
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import prefill
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm_export import blocks, mlp, reference
from edgellm_export.arch import find
from edgellm_export.blocks import Rope
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.graph import Graph, Value
from edgellm_export.linear import Matrix, linear
from edgellm_export.weights import Float32

# Relative to the largest logit: float32 sums in another order.
LIMIT = 1e-4
IDS = np.random.default_rng(7).integers(0, tiny.vocab_size(), 24).tolist()

SIZES = [TINY, UNTIED, WIDE_HEADS, ONE_KV_HEAD, ALL_KV_HEADS, LONG]
FLOATS = [("F32", 1), ("F16", 1), ("BF16", 3)]
GGUFS = [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F16, Kind.F32]
PRECISIONS = ["fp32", "fp16", "int8", "int4"]


def from_folder(folder: Path, sizes: tiny.Sizes, precision: str, dtype: str = "F32") -> Built:
    source = tiny.write_folder(folder / "source", sizes, dtype)
    return tiny.build(open_checkpoint(source), precision, folder / "out")


def from_gguf(folder: Path, sizes: tiny.Sizes, kind: Kind, precision: str = "exact") -> Built:
    source = tiny.write_gguf(folder / "m.gguf", sizes, kind)
    return tiny.build(open_checkpoint(source), precision, folder / "out")


def expected(built: Built, ids: list[int]) -> Float32:
    return reference.forward(built.config, built.stored, ids)


def open_session(graph: Path, built: Built) -> Session:
    return Session(graph, built.shape, LoadOptions(threads=1))


def all_rows(session: Session, ids: list[int]) -> Float32:
    cache = KVCache(session.shape, len(ids))
    return session.forward(ids, range(len(ids)), cache).copy()


def run_portable(graph: Path, ids: np.ndarray, mask: np.ndarray, shape: tiny.Shape) -> Float32:
    ort = load_onnxruntime()
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    empty = np.zeros((len(ids), shape.num_key_value_heads, 0, shape.head_dim), np.float32)
    feed = {value.name: empty for value in session.get_inputs()}
    feed |= {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
    return np.asarray(session.run(["logits"], feed)[0])


def assert_close(found: Float32, wanted: Float32) -> None:
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= LIMIT * np.abs(wanted).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"model{s.seed}")
def test_a_graph_of_floats_computes_the_forward_pass(
    tmp_path: Path, sizes: tiny.Sizes, precision: str
) -> None:
    built = from_folder(tmp_path, sizes, precision)
    assert_close(all_rows(open_session(built.exact, built), IDS), expected(built, IDS))


@pytest.mark.parametrize(("dtype", "shards"), FLOATS)
def test_every_float_type_is_kept(tmp_path: Path, dtype: str, shards: int) -> None:
    source = tiny.write_folder(tmp_path / "source", TINY, dtype, shards)
    built = tiny.build(open_checkpoint(source), "exact", tmp_path / "out")
    assert_close(all_rows(open_session(built.exact, built), IDS), expected(built, IDS))
    # The weights that were read back are those that went in, through the named type and no other.
    wanted = tiny.weights(TINY)["model.layers.1.mlp.up_proj.weight"]
    found = built.stored("model.layers.1.mlp.up_proj.weight")
    rounding = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-7}[dtype]
    assert np.abs(found - wanted).max() <= rounding * np.abs(wanted).max()


@pytest.mark.parametrize("sizes", [TINY, UNTIED, WIDE_HEADS], ids=lambda s: f"model{s.seed}")
@pytest.mark.parametrize("kind", GGUFS, ids=lambda kind: kind.name)
def test_a_graph_of_gguf_blocks_computes_the_forward_pass(
    tmp_path: Path, sizes: tiny.Sizes, kind: Kind
) -> None:
    built = from_gguf(tmp_path, sizes, kind)
    assert_close(all_rows(open_session(built.exact, built), IDS), expected(built, IDS))


@pytest.mark.parametrize("embedding", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F16])
def test_any_block_format_can_be_embedding_and_head(tmp_path: Path, embedding: Kind) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", TINY, Kind.Q8_0, embedding)
    built = tiny.build(open_checkpoint(source), "exact", tmp_path / "out")
    assert_close(all_rows(open_session(built.exact, built), IDS), expected(built, IDS))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gguf_blocks_can_be_made_into_another_precision(tmp_path: Path, precision: str) -> None:
    built = from_gguf(tmp_path, TINY, Kind.Q4_1, precision)
    assert_close(all_rows(open_session(built.exact, built), IDS), expected(built, IDS))


def test_a_gguf_file_and_a_folder_of_the_same_numbers_are_the_same_model(tmp_path: Path) -> None:
    one = from_folder(tmp_path / "folder", WIDE_HEADS, "fp32")
    two = from_gguf(tmp_path / "gguf", WIDE_HEADS, Kind.F32, "fp32")
    logits = all_rows(open_session(one.exact, one), IDS)
    # The embedding of the GGUF is Q8_0: compare what does not depend on its rounding.
    three = tiny.build(
        open_checkpoint(tiny.write_gguf(tmp_path / "f.gguf", WIDE_HEADS, Kind.F32, Kind.F32)),
        "fp32", tmp_path / "three",
    )  # fmt: skip
    assert np.array_equal(all_rows(open_session(three.exact, three), IDS), logits)
    assert not np.array_equal(all_rows(open_session(two.exact, two), IDS), logits)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """The exact import of Q4_1 and the fp32 and int4 builds, each made once."""
    made: dict[str, Built] = {}

    def get(name: str) -> Built:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (
                from_gguf(folder, WIDE_HEADS, Kind.Q4_1)
                if name == "exact"
                else from_folder(folder, UNTIED, name)
            )
        return made[name]

    return get


EVERY = pytest.mark.parametrize("name", ["exact", "fp32", "int4", "int8", "fp16"])


@EVERY
def test_decoding_from_the_cache_equals_one_pass(models: Callable[[str], Built], name: str) -> None:
    built = models(name)
    session = open_session(built.exact, built)
    cache = KVCache(built.shape, 1)
    rows = [session.forward([token], [0], cache)[0].copy() for token in IDS]
    assert cache.tokens == IDS
    assert_close(np.stack(rows), all_rows(session, IDS))


@EVERY
@pytest.mark.parametrize("chunk", [1, 5, 23, 24])
def test_prefill_in_chunks_equals_one_pass(
    models: Callable[[str], Built], name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = models(name)
    session = open_session(built.exact, built)
    monkeypatch.setattr("edgellm.runtime.decode.CHUNK_TOKENS", chunk)
    last = prefill(session, KVCache(built.shape, len(IDS)), IDS)
    assert_close(last[None], all_rows(session, IDS)[-1:])


@EVERY
def test_a_rolled_back_cache_remembers_nothing_of_the_wrong_turn(
    models: Callable[[str], Built], name: str
) -> None:
    built = models(name)
    session = open_session(built.exact, built)
    wanted = all_rows(session, IDS)
    cache = KVCache(built.shape, len(IDS))
    wrong = [(token + 1) % tiny.vocab_size() for token in IDS]
    session.forward([*IDS[:10], *wrong[10:]], [], cache)
    assert cache.keep_common(IDS) == 10
    found = session.forward(IDS[10:], range(len(IDS) - 10), cache)
    assert_close(found, wanted[10:])


@EVERY
def test_any_rows_are_the_same_rows(models: Callable[[str], Built], name: str) -> None:
    built = models(name)
    session = open_session(built.exact, built)
    wanted = all_rows(session, IDS)
    for rows in ([0], [23], [3, 1, 22], [7, 7]):
        found = session.forward(IDS, rows, KVCache(built.shape, len(IDS)))
        assert_close(found, wanted[rows])
    assert session.forward(IDS, [], KVCache(built.shape, len(IDS))).shape[0] == 0


@EVERY
def test_the_portable_graph_equals_the_native_one(
    models: Callable[[str], Built], name: str
) -> None:
    built = models(name)
    wanted = all_rows(open_session(built.exact, built), IDS)
    ids = np.array([IDS])
    found = run_portable(built.portable, ids, np.ones_like(ids), built.shape)
    assert_close(found[0], wanted)


@EVERY
def test_a_right_padded_batch_equals_its_single_prompts(
    models: Callable[[str], Built], name: str
) -> None:
    built = models(name)
    session = open_session(built.exact, built)
    short = IDS[5:14]
    ids = np.array([IDS, short + [0] * (len(IDS) - len(short))])
    mask = np.array([[1] * len(IDS), [1] * len(short) + [0] * (len(IDS) - len(short))])
    found = run_portable(built.portable, ids, mask, built.shape)
    assert_close(found[0], all_rows(session, IDS))
    assert_close(found[1, : len(short)], all_rows(session, short))


@EVERY
def test_the_portable_graph_continues_from_its_own_cache(
    models: Callable[[str], Built], name: str
) -> None:
    built = models(name)
    wanted = all_rows(open_session(built.exact, built), IDS)
    ort = load_onnxruntime()
    session = ort.InferenceSession(str(built.portable), providers=["CPUExecutionProvider"])
    shape = built.shape
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), np.float32)
    names = [value.name for value in session.get_inputs()]
    past = {name: empty for name in names if name.startswith("past")}
    found = []
    for start, stop in ((0, 10), (10, 11), (11, len(IDS))):
        feed = {
            "input_ids": np.array([IDS[start:stop]]),
            "attention_mask": np.ones((1, stop), np.int64),
        }
        outputs = session.run(None, {**feed, **past})
        by_name = dict(zip((o.name for o in session.get_outputs()), outputs, strict=True))
        found.append(by_name.pop("logits")[0])
        past = {n.replace("present", "past_key_values"): v for n, v in by_name.items()}
    assert past["past_key_values.1.value"].shape == (1, 2, len(IDS), shape.head_dim)
    assert_close(np.concatenate(found), wanted)


@pytest.mark.parametrize("name", ["exact", "int4", "int8"])
def test_int8_activations_change_little(models: Callable[[str], Built], name: str) -> None:
    built = models(name)
    fast = all_rows(open_session(built.native, built), IDS)
    exact = all_rows(open_session(built.exact, built), IDS)
    assert np.abs(fast - exact).max() < 0.1 * np.abs(exact).max()
    assert not np.array_equal(fast, exact)


def swapped_rotation(*args: Any) -> Value:
    """Attention with cos and sin exchanged."""
    return ATTENTION(*(Rope(a.sin, a.cos) if isinstance(a, Rope) else a for a in args))


def lost_residual(g: Graph, x: Value, residual: Value, *rest: Any) -> tuple[Value, Value]:
    """Sums whose residual is left out."""
    return ADD_RMS_NORM(g, x, x, *rest)


def exchanged_gate(g: Graph, x: Value, gate_up: Matrix, down: Matrix) -> Value:
    up, gate = g.ops("Split", linear(g, x, gate_up), outputs=2, axis=-1, num_outputs=2)
    return linear(g, g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up), down)


ATTENTION, ADD_RMS_NORM = blocks.attention, blocks.add_rms_norm


@pytest.mark.parametrize(
    ("module", "part", "broken"),
    [
        (blocks, "attention", swapped_rotation),
        (blocks, "add_rms_norm", lost_residual),
        (mlp, "gated_mlp", exchanged_gate),
    ],
)
def test_a_broken_graph_is_far_beyond_the_limit(
    tmp_path: Path,
    module: ModuleType,
    part: str,
    broken: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, part, broken)
    built = from_folder(tmp_path, TINY, "fp32")
    wanted = expected(built, IDS)
    found = all_rows(open_session(built.exact, built), IDS)
    assert np.abs(found - wanted).max() > 100 * LIMIT * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("sliding_window", 64)],
)
def test_a_variant_that_the_builder_does_not_know_is_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    source = tiny.write_folder(tmp_path / "source", TINY, config={key: value})
    with pytest.raises(Incompatible, match=f"{key} is .*{value}"):
        tiny.build(open_checkpoint(source), "fp32", tmp_path / "out")


@pytest.mark.parametrize("name", ["mamba", "os", "__init__", "../llama", None, 3])
def test_an_architecture_without_a_builder_is_refused_with_the_list(name: object) -> None:
    with pytest.raises(Incompatible, match=r"there are: .*llama"):
        find(name)
