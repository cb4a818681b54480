"""Last blocks that are not full: no byte on disk, no node once loaded, and the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models as tiny

from edgellm.bundle.manifest import Source
from edgellm.bundle.open import verify
from edgellm.errors import Incompatible
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.data import DataFile
from edgellm_export.graph import EXACT, FAST, FLOAT, Graph
from edgellm_export.linear import linear
from edgellm_export.matrices import store_matrix
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.publish import weight_bytes
from edgellm_export.quantize import budget, fit, gptq, rtn, suits
from edgellm_export.quantize.budget import Material
from edgellm_export.quantize.calibrate import Calibration
from edgellm_export.quantize.grids import search
from edgellm_export.recipe import Integer, Keep, Recipe
from edgellm_export.store import Place, WeightStore
from edgellm_export.stored import StoredWeights
from edgellm_export.weights import Blocks, Float32, alike, concatenate, pack, stack, unpack

# Every width of the layers has a tail in blocks of 64: 240 = 3 * 64 + 48, 288 = 4 * 64 + 32.
SIZES = tiny.Sizes(hidden=240, inner=288, heads=15, kv_heads=3, width=16)
N, K, BLOCK = 24, 144, 64
SCHEMES = [Integer(bits, BLOCK, asymmetric) for bits in (2, 4, 8) for asymmetric in (True, False)]
CPU = ["CPUExecutionProvider"]


def blocks(scheme: Integer, n: int = N, k: int = K, seed: int = 0) -> Blocks:
    """Random ones, whose codes beyond K are random too."""
    rng = np.random.default_rng(seed)
    grid = (n, -(-k // scheme.block_size))
    codes = rng.integers(0, 1 << scheme.bits, (n, grid[1] * scheme.block_size), np.uint8)
    return Blocks(
        scheme.bits,
        scheme.block_size,
        pack(codes, scheme.bits, scheme.block_size),
        rng.uniform(0.01, 0.02, grid).astype(np.float16),
        rng.integers(0, 1 << scheme.bits, grid, np.uint8) if scheme.asymmetric else None,
        width=k,
    )


def slowly(b: Blocks) -> Float32:
    """Dequantized one number at a time, from the definition."""
    codes = unpack(b.packed, b.bits)
    out = np.zeros(b.shape, np.float32)
    for row, col in np.ndindex(*b.shape):
        at = row, col // b.block_size
        zero = 1 << (b.bits - 1) if b.zero_points is None else int(b.zero_points[at])
        code = int(codes[(*at, col % b.block_size)])
        out[row, col] = np.float32(code - zero) * np.float32(b.scales[at])
    return out


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_beyond_the_width_mean_nothing(scheme: Integer) -> None:
    b = blocks(scheme)
    assert b.shape == b.codes().shape == (N, K)
    assert np.array_equal(b.dequantize(), slowly(b))
    cleared = replace(b, packed=pack(b.codes(), b.bits, BLOCK))
    assert not unpack(cleared.packed, b.bits)[:, -1, K % BLOCK :].any()
    assert np.array_equal(cleared.dequantize(), b.dequantize())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_and_stacks_keep_the_width(scheme: Integer) -> None:
    a, b, order = blocks(scheme), blocks(scheme, seed=1), np.array([5, 0, 0, 3])
    assert np.array_equal(a.rows(order).dequantize(), a.dequantize()[order])
    both = np.concatenate([a.dequantize(), b.dequantize()])
    assert np.array_equal(concatenate([a, b]).dequantize(), both)
    stacked = stack([a, b])
    assert isinstance(stacked, Blocks)
    assert stacked.shape == (2 * N, K)
    assert not alike([a, blocks(scheme, k=K + 16)])


def stored(folder: Path, weight: Blocks) -> tuple[DataFile, Place]:
    with DataFile(folder / "w.data") as data:
        matrix = store_matrix(data, "w", weight)
    return data, Place(matrix, 0, matrix.shape[0], Keep())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_disk_holds_no_code_beyond_the_width_and_all_others_come_back(
    tmp_path: Path, scheme: Integer
) -> None:
    weight = blocks(scheme)
    data, place = stored(tmp_path, weight)
    found = StoredWeights(data, {"w": place}).weight("w")
    assert isinstance(found, Blocks)
    assert np.array_equal(found.codes(), weight.codes())
    assert np.array_equal(found.dequantize(), weight.dequantize())
    matrix = place.stored
    assert matrix.values.nbytes + matrix.tail.nbytes == N * K * scheme.bits // 8
    # In memory they are there, and the plan of what a model needs counts them.
    assert weight_bytes({"w": place})["codes"] == weight.packed.nbytes


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize(("level", "limit"), [(EXACT, 1e-5), (FAST, 3e-2)])
def test_products_are_those_of_the_numbers(
    tmp_path: Path, scheme: Integer, size: int, level: int, limit: float
) -> None:
    for k in sorted({size + 16, 2 * size - 16, 5 * size // 2}):
        folder = tmp_path / str(k)
        folder.mkdir()
        weight = blocks(replace(scheme, block_size=size), k=k)
        found, inputs = products(folder, weight, level)
        wanted = [x @ weight.dequantize().T for x in inputs]
        for y, w in zip(found, wanted, strict=True):
            assert np.abs(y - w).max() <= limit * np.abs(w).max()


def products(folder: Path, weight: Blocks, level: int) -> tuple[list[Float32], list[Float32]]:
    """What ONNX Runtime computes for one row and for many, and of what."""
    data, place = stored(folder, weight)
    g = Graph("product", data.path.name, level)
    x = g.input("x", FLOAT, (1, "T", weight.shape[1]))
    g.output("y", linear(g, x, place.stored), FLOAT, (1, "T", weight.shape[0]))
    g.save(folder / "product.onnx")
    session = load_onnxruntime().InferenceSession(str(folder / "product.onnx"), providers=CPU)
    rng = np.random.default_rng(1)
    shapes = [(1, rows, weight.shape[1]) for rows in (1, 200)]
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [session.run(None, {"x": x})[0] for x in inputs], inputs


@pytest.mark.parametrize(
    ("wanted", "inner", "found"),
    [
        (128, 576, 128),  # an eighth of 576 is 72, and 64 are empty
        (128, 960, 128),
        (128, 320, 64),  # 64 of 320 would be a fifth
        (256, 576, 128),  # 192 of 576 would be a third
        (256, 1216, 256),
        (128, 144, 32),
        (64, 240, 64),
        (64, 576, 64),
        (64, 96, 32),
        (256, 240, 128),  # not less than one block
        (64, 992, 64),
    ],
)
def test_a_block_is_chosen_that_leaves_at_most_an_eighth_empty(
    wanted: int, inner: int, found: int
) -> None:
    chosen = fit(Integer(4, wanted, True), inner, tails=True)
    assert chosen.block_size == found
    assert -inner % found * 8 <= inner


def test_only_products_of_whole_bytes_have_tails() -> None:
    assert fit(Integer(4, 128, True), 576).block_size == 64
    assert fit(Integer(4, 128, False, minima=True), 576, tails=True).block_size == 64
    assert fit(Integer(2, 64, True), 1008, tails=True).block_size == 64
    assert not suits(Integer(4, 128, True), 1004, tails=True)
    with pytest.raises(Incompatible, match=r"width 1004 is no multiple of 16"):
        fit(Integer(4, 128, True), 1004, tails=True)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_grid_of_a_tail_is_that_of_its_own_weights(scheme: Integer) -> None:
    """As if they were a matrix with blocks of just their size."""
    weight = np.random.default_rng(0).standard_t(3, (N, BLOCK + 32)).astype(np.float32) + 1
    tail, alone = np.ascontiguousarray(weight[:, BLOCK:]), replace(scheme, block_size=32)
    rounded = rtn.quantize(weight, scheme).dequantize()
    assert np.array_equal(rounded[:, BLOCK:], rtn.quantize(tail, alone).dequantize())
    ones = np.ones(weight.shape[1], np.float32)
    minima = replace(scheme, asymmetric=False, minima=True)
    for one in (scheme, minima):
        found = search(weight, ones, one)
        own = search(tail, ones[BLOCK:], replace(one, block_size=32))
        assert np.allclose(found.scale[:, 1:], own.scale, rtol=2**-10)
        assert np.allclose(found.offset[:, 1:], own.offset, rtol=2**-10)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_calibrated_outputs_change_less_than_with_round_to_nearest(scheme: Integer) -> None:
    weight, h = problem()
    calibrated = gptq.quantize(weight, h, scheme)
    assert calibrated.shape == weight.shape
    nearest = rtn.quantize(weight, scheme).dequantize()
    losses = [gptq.loss(weight, one, h) for one in (calibrated.dequantize(), nearest)]
    assert losses[0] < 0.8 * losses[1]


@pytest.mark.parametrize("minima", [False, True])
def test_descent_and_refit_never_make_it_worse(minima: bool) -> None:
    weight, h = problem()
    damped = gptq.damp(h, 0.01).astype(np.float32)
    grid = search(weight, np.diag(damped), Integer(4, BLOCK, not minima, minima))
    codes = gptq.carry_errors(weight, grid, gptq.inverse_factor(gptq.damp(h, 0.01), None), None)
    losses = [gptq.loss(weight, grid.dequantize(codes), damped)]
    for _ in range(3):
        grid = gptq.refit(weight, codes, grid, damped)
        losses.append(gptq.loss(weight, grid.dequantize(codes), damped))
        codes = gptq.descend(weight, codes, grid, damped)
        losses.append(gptq.loss(weight, grid.dequantize(codes), damped))
    assert all(b <= a * 1.001 for a, b in pairwise(losses))
    assert losses[-1] < losses[0]


def problem() -> tuple[Float32, Float32]:
    """A weight, and H of inputs that hang together."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((600, K)) @ rng.standard_normal((K, K))
    x = (mixed * np.exp(rng.standard_normal(K))).astype(np.float32)
    return (rng.standard_t(5, (40, K)) / np.sqrt(K)).astype(np.float32), x.T @ x


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_budget_knows_the_bytes_of_a_tail(tmp_path: Path, scheme: Integer) -> None:
    weight = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)
    with DataFile(tmp_path / "w") as data:
        store_matrix(data, "m", gptq.quantize(weight, None, scheme))
        data.append("end", np.zeros(16, np.float32))
    assert budget.stored_bytes((N, K), scheme) == data.bytes - 64


def test_a_budget_gives_tails_to_products_only() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 576)).astype(np.float32)
    shapes = {name: weight.shape for name in ("layer", "table")}
    material = Material(
        shapes,
        lambda _: weight,
        lambda _: None,
        dict.fromkeys(shapes, 1e-3),
        tables={"table"},
    )
    sizes = [budget.stored_bytes(weight.shape, Integer(4, size, True)) for size in (128, 64)]
    chosen = budget.plan(material, sum(sizes))
    assert chosen["layer"] == Integer(4, 128, True, method="gptq")
    assert chosen["table"] == Integer(4, 64, True, method="gptq")


def tailed(bits: int = 4) -> Recipe:
    scheme = Integer(bits, BLOCK, True)  # type: ignore[arg-type]
    # Blocks of 16 then, the only ones that divide 240, which 2 bits do not have.
    return Recipe("tails", scheme, Integer(8, BLOCK, True), "_q4")


def exported(
    folder: Path, chosen: Recipe, calibration: Calibration | None = None, more: bool = False
) -> Path:
    """A bundle with graphs for NPUs, and with `more` all other forms too."""
    source = tiny.write_folder(folder / "source", SIZES)
    out = folder / "out"
    out.mkdir()
    forms = {"qnn": True, "ort": more, "fast_prefill": more}
    job = Job(source, chosen, Source("x"), "x", calibration=calibration, **forms)
    report = export_bundle(job, out).self_check
    assert report["logits_error_float32"] < 1e-5
    assert report["portable_error"] < 1e-5
    assert report["qnn_error"] < 1e-4
    assert report["weights_rms_error"] < 0.6
    return out


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bundle_passes_its_self_check_and_runs(tmp_path: Path, bits: int) -> None:
    out = exported(tmp_path, tailed(bits))
    shape = verify(out).shape
    session = Session(out / "onnx" / "edgellm_q4.onnx", shape, LoadOptions(threads=1))
    rows = session.forward([5, 6, 7], [2], KVCache(shape, 4))
    assert np.isfinite(rows).all()


def test_every_other_form_of_a_bundle_computes_the_same(tmp_path: Path) -> None:
    out = exported(tmp_path, tailed(), more=True)
    assert (out / "onnx" / "edgellm_q4.ort").is_file()
    assert (out / "onnx" / "prefill_q4.onnx").is_file()


def test_float16_graphs_have_no_tails(tmp_path: Path) -> None:
    source = open_checkpoint(tiny.write_folder(tmp_path / "source", SIZES))
    with DataFile(tmp_path / "data") as data:
        store = WeightStore(source, replace(tailed(), activations="float16"), data)
        matrix = store.linear("o", "model.layers.0.self_attn.o_proj")
    assert (matrix.tail, matrix.block_size) == (None, 16)


def test_a_calibrated_bundle_passes_its_self_check(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog in the year of the water\n" * 200)
    exported(tmp_path, tailed().calibrated(), Calibration(tmp_path / "cache", text, tokens=2048))


@pytest.mark.parametrize("graph", ["edgellm_q4", "model_q4"])
def test_nothing_of_a_tail_is_left_to_do_once_a_graph_is_loaded(tmp_path: Path, graph: str) -> None:
    out = exported(tmp_path, tailed())
    path, made = out / "onnx" / f"{graph}.onnx", tmp_path / "optimised.onnx"
    before = operators(path)
    # Of each layer qkv, o, gate and up in one, and down.
    assert before.count("Pad") == 4 * SIZES.layers
    settings = load_onnxruntime().SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(made)
    load_onnxruntime().InferenceSession(str(path), settings, providers=CPU)
    after = operators(made)
    assert "Pad" not in after
    assert before.count("Concat") - after.count("Concat") >= 4 * SIZES.layers
    assert after.count("MatMulNBits") >= before.count("MatMulNBits") - 1


def operators(path: Path) -> Sequence[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def test_a_larger_block_with_a_tail_takes_less_of_the_disk(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 576)).astype(np.float32)
    sizes = {}
    for size in (64, 128):
        with DataFile(tmp_path / str(size)) as data:
            store_matrix(data, "w", rtn.quantize(weight, Integer(4, size, True)))
        sizes[size] = data.bytes
    assert sizes[128] < sizes[64]


def test_tables_and_experts_have_blocks_that_divide_their_width(tmp_path: Path) -> None:
    source = open_checkpoint(tiny.write_folder(tmp_path / "source", SIZES))
    with DataFile(tmp_path / "data") as data:
        store = WeightStore(source, tailed(), data)
        qkv = store.linear("qkv", *(f"model.layers.0.self_attn.{p}_proj" for p in "qkv"))
        table = store.outer("embed_tokens", "model.embed_tokens")
        each = [tuple(f"model.layers.{i}.mlp.{p}_proj" for p in ("gate", "up")) for i in (0, 1)]
        experts = store.experts("experts", each)
    assert [matrix.shape[1] for matrix in (qkv, table, experts)] == [240, 240, 240]
    assert [matrix.block_size for matrix in (qkv, table, experts)] == [64, 16, 16]
    assert [matrix.tail is None for matrix in (qkv, table, experts)] == [False, True, True]
