"""Weights in the data file: nothing lost, nothing twice, nothing left over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models as tiny
from tiny_models import TINY, UNTIED, WIDE_HEADS, Kind

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.arch import llama
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.data import DataFile, Stored
from edgellm_export.linear import Matrix
from edgellm_export.matrices import store_matrix
from edgellm_export.recipe import names, recipe
from edgellm_export.store import WeightStore
from edgellm_export.stored import StoredWeights
from edgellm_export.weights import Blocks, Dense, pack, to_float32

Q4_1 = "exact Q4_1"
EVERY = [*names(), Q4_1]


def checkpoint_of(name: str, folder: Path, sizes: tiny.Sizes = TINY) -> Checkpoint:
    if name == Q4_1:
        return open_checkpoint(tiny.write_gguf(folder / "m.gguf", sizes, Kind.Q4_1))
    return open_checkpoint(tiny.write_folder(folder / "source", sizes, "F16"))


def stored(name: str, folder: Path, sizes: tiny.Sizes = TINY) -> tuple[WeightStore, llama.Llama]:
    checkpoint = checkpoint_of(name, folder, sizes)
    with DataFile(folder / "data") as data:
        store = WeightStore(checkpoint, recipe(name.split()[0]), data)
        return store, llama.store(store)


@pytest.mark.parametrize("name", EVERY)
def test_every_tensor_has_a_place_and_can_be_read_back(tmp_path: Path, name: str) -> None:
    store, _ = stored(name, tmp_path, UNTIED)
    read = StoredWeights(store.data, store.places)
    assert store.places.keys() == store.checkpoint.names()
    # Half a step of 4 bits over a range of about 0.9, and a clipped tail.
    limit = {
        "compact": 0.08,
        "int4": 0.08,
        "q4f16": 0.08,
        "int4_block128": 0.08,
        "int2": 0.4,
        "int8": 0.005,
        "fp16": 1e-3,
    }.get(name, 0.0)
    for tensor in store.checkpoint.names():
        wanted = to_float32(store.checkpoint.weight(tensor))
        found = read(tensor)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= limit, tensor


@pytest.mark.parametrize("name", EVERY)
def test_the_parts_of_a_packed_matrix_lie_one_after_another(tmp_path: Path, name: str) -> None:
    store, weights = stored(name, tmp_path, WIDE_HEADS)
    at = "model.layers.1.self_attn."
    places = [store.places[f"{at}{part}_proj.weight"] for part in "qkv"]
    assert [(p.start, p.stop) for p in places] == [(0, 128), (128, 192), (192, 256)]
    assert {id(p.stored) for p in places} == {id(weights.layers[1].qkv)}
    assert weights.layers[1].qkv.shape == (256, 64)


def test_a_tied_embedding_is_on_the_disk_once_and_in_both_places_of_the_graph(
    tmp_path: Path,
) -> None:
    tied, untied = replace(TINY, seed=9), replace(TINY, seed=9, tied=False)
    sizes = {}
    for model in (tied, untied):
        store, weights = stored("fp32", tmp_path / f"{model.tied}", model)
        sizes[model.tied] = store.data.bytes
        assert (weights.head is weights.embedding) == model.tied
    table_bytes = 4 * tiny.vocab_size() * TINY.hidden
    assert sizes[False] - sizes[True] == table_bytes
    source = open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", tied, Kind.Q4_1, Kind.Q8_0))
    built = tiny.build(source, "exact", tmp_path / "built")
    model = ir.load(built.native)
    tensors = [v.const_value for v in model.graph.initializers.values()]
    views = [
        (tensor.offset, tuple(tensor.shape))
        for tensor in tensors
        if isinstance(tensor, ir.ExternalTensor) and tensor.name.startswith("embed_tokens.blocks")
    ]
    # GatherBlockQuantized wants two axes, MatMulNBits three.
    assert len(views) == 2
    assert len({offset for offset, _ in views}) == 1
    assert {len(shape) for _, shape in views} == {2, 3}


def test_parameters_are_counted_once(tmp_path: Path) -> None:
    for sizes in (TINY, UNTIED):
        store, weights = stored("int4", tmp_path / f"{sizes.seed}", sizes)
        assert store.parameters == sum(values.size for values in tiny.weights(sizes).values())
        assert llama.shape(weights).parameters == store.parameters


def test_float16_stays_float16_on_the_disk(tmp_path: Path) -> None:
    _, weights = stored("exact", tmp_path)
    layer = weights.layers[0]
    matrices = [weights.embedding, layer.qkv, layer.out, layer.gate_up, layer.down]
    assert {matrix.values.dtype for matrix in matrices} == {np.dtype(np.float16)}
    assert layer.input_norm.dtype == np.float32


def test_blocks_keep_their_bytes(tmp_path: Path) -> None:
    store, _ = stored(Q4_1, tmp_path)
    read = StoredWeights(store.data, store.places)
    for part in ("self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"model.layers.0.{part}.weight"
        wanted, found = store.checkpoint.weight(name), read.weight(name)
        assert isinstance(wanted, Blocks)
        assert isinstance(found, Blocks)
        assert wanted.minima is not None
        assert found.minima is not None
        assert np.array_equal(found.packed, wanted.packed)
        assert np.array_equal(found.scales, wanted.scales)
        assert np.array_equal(found.minima, wanted.minima)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_zero_points_are_packed_and_come_back(tmp_path: Path, bits: int, count: int) -> None:
    rng = np.random.default_rng(count)
    q = rng.integers(0, 1 << bits, (5, 32 * count), dtype=np.uint8)
    zeros = rng.integers(0, 1 << bits, (5, count), dtype=np.uint8)
    weight = Blocks(bits, 32, pack(q, bits, 32), np.ones((5, count), np.float16), zeros)
    with DataFile(tmp_path / "data") as data:
        matrix = store_matrix(data, "w", weight)
    assert matrix.zero_points is not None
    assert matrix.zero_points.shape == (5, -(-count * bits // 8))
    found = read_back(data, matrix)
    assert isinstance(found, Blocks)
    assert np.array_equal(found.dequantize(), weight.dequantize())


def read_back(data: DataFile, matrix: Matrix) -> Blocks | Dense:
    from edgellm_export.recipe import Keep
    from edgellm_export.store import Place

    place = Place(matrix, 0, matrix.shape[0], Keep())
    return StoredWeights(data, {"w": place}).weight("w")


@pytest.mark.parametrize("precision", ["fp16", "int4", "int8"])
def test_numbers_beyond_float16_are_refused_by_name(tmp_path: Path, precision: str) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    changes = {name: np.full((TINY.hidden, TINY.inner), 1e9, np.float32)}
    source = open_checkpoint(tiny.write_folder(tmp_path / "source", TINY, changes=changes))
    with pytest.raises(Incompatible, match=f"{name}.*float16 ends at 65504.*--precision fp32"):
        tiny.build(source, precision, tmp_path / "out")
    tiny.build(source, "fp32", tmp_path / "fp32")


def test_a_tensor_without_a_place_is_refused_by_name(tmp_path: Path) -> None:
    extra = np.ones(TINY.width, np.float32)
    changes = {"model.layers.0.self_attn.q_norm.weight": extra, "model.extra.weight": extra}
    source = open_checkpoint(tiny.write_folder(tmp_path / "source", TINY, changes=changes))
    with pytest.raises(Incompatible, match=r"2 tensors have no place .* 'model\.extra\.weight'"):
        tiny.build(source, "fp32", tmp_path / "out")


def test_a_table_that_old_checkpoints_carry_is_left_out(tmp_path: Path) -> None:
    changes = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    source = open_checkpoint(tiny.write_folder(tmp_path / "source", TINY, changes=changes))
    built = tiny.build(source, "fp32", tmp_path / "out")
    assert built.shape.num_hidden_layers == TINY.layers


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    source = open_checkpoint(tiny.write_folder(tmp_path / "source", TINY, changes={name: None}))
    with pytest.raises(Corrupt, match=name):
        tiny.build(source, "fp32", tmp_path / "out")


def test_places_are_aligned_and_do_not_overlap(tmp_path: Path) -> None:
    store, weights = stored("int4", tmp_path, UNTIED)
    pieces: list[Stored] = [weights.rope.cos, weights.rope.sin]
    for place in {id(p.stored): p.stored for p in store.places.values()}.values():
        if isinstance(place, Stored):
            pieces.append(place)
        else:
            parts = (place.values, place.scales, place.zero_points, place.minima)
            pieces += [part for part in parts if part is not None]
    pieces.sort(key=lambda piece: piece.offset)
    assert all(piece.offset % 64 == 0 for piece in pieces)
    ends = [piece.offset + piece.nbytes for piece in pieces]
    assert all(end <= nxt.offset for end, nxt in zip(ends, pieces[1:], strict=False))
    assert ends[-1] == store.data.bytes


def test_a_matrix_that_no_recipe_rounds_is_not_offered_to_a_budget(tmp_path: Path) -> None:
    with DataFile(tmp_path / "data") as data:
        store = WeightStore(checkpoint_of("fp32", tmp_path), recipe("int4"), data)
        router = store.exact("router", "model.layers.0.self_attn.o_proj")
        store.linear("layer", "model.layers.1.self_attn.o_proj")
    assert router.scales is None
    assert list(store.matrices) == ["layer"]
