"""Every block type of the table: the numbers are those of gguf's own dequantizer, to the bit."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models as tiny
from gguf import GGMLQuantizationType as Kind
from tiny_models import SUPER, make_bundle

from edgellm.errors import Corrupt
from edgellm_export import reference
from edgellm_export.checkpoint import gguf_formats
from edgellm_export.checkpoint.gguf import GgufCheckpoint
from edgellm_export.checkpoint.gguf_blocks import bits_a_weight
from edgellm_export.checkpoint.gguf_file import Tensor
from edgellm_export.checkpoint.gguf_formats import FORMATS
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.weights import Blocks, pack, to_float32

N, K = 6, 512
KINDS = [Kind[name] for name in FORMATS]
GATE = "model.layers.0.mlp.gate_proj.weight"


def raw_blocks(kind: Kind, values: np.ndarray | None = None) -> np.ndarray:
    """Bytes (N, blocks, size)."""
    rng = np.random.default_rng(kind)
    given = rng.standard_normal((N, K)).astype(np.float32) if values is None else values
    width, size = gguf.constants.GGML_QUANT_SIZES[kind]
    return tiny.quantized(given, kind).reshape(N, K // width, size)


def table() -> dict[str, tuple[float, float]]:
    """Type → bits in GGUF and here, as the module's docstring says."""
    rows = re.findall(
        r"^    (\w+) +([\d.]+) +([\d.]+) +[48] bits", gguf_formats.__doc__ or "", re.M
    )
    return {name: (float(theirs), float(ours)) for name, theirs, ours in rows}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_block_type_means_what_gguf_says_it_means(kind: Kind) -> None:
    raw = raw_blocks(kind)
    blocks = FORMATS[kind.name].unpack(raw)
    expected = gguf.quants.dequantize(raw.reshape(N, -1), kind)
    assert blocks.shape == (N, K)
    assert np.array_equal(blocks.dequantize(), expected)
    assert np.array_equal(blocks.packed, pack(blocks.codes(), blocks.bits, blocks.block_size))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_bytes_mean_the_same_as_in_gguf(kind: Kind) -> None:
    raw = np.random.default_rng(kind).integers(0, 256, raw_blocks(kind).shape, np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw.reshape(N, -1), kind)
        found = FORMATS[kind.name].unpack(raw).dequantize()
    finite = np.isfinite(expected)
    assert finite.mean() > 0.3
    assert np.array_equal(found[finite], expected[finite])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_codes_lie_around_the_default_zero_point(kind: Kind) -> None:
    blocks = FORMATS[kind.name].unpack(raw_blocks(kind))
    middle = 1 << (blocks.bits - 1)
    codes = blocks.codes()
    assert codes.min() < middle <= codes.max()
    assert abs((int(codes.min()) + int(codes.max()) + 1) / 2 - middle) <= middle / 8


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_table_says_what_a_weight_costs(kind: Kind) -> None:
    width, size = gguf.constants.GGML_QUANT_SIZES[kind]
    bits = bits_a_weight(Tensor("x", kind.name, (N, width), 0, N * size))
    assert bits == pytest.approx(table()[kind.name], abs=0.05)
    assert table().keys() == FORMATS.keys()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_model_of_every_type_is_exact_from_end_to_end(kind: Kind, tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", SUPER, kind, kind)
    lines: list[str] = []
    made = make_bundle(source, tmp_path / "out", notice=lines.append)
    assert made.self_check["exact_tensors"] == made.self_check["tensors"]
    assert made.self_check["logits_error_float32"] < 1e-4
    theirs, ours = table()[kind.name]
    told = [line for line in lines if f"of type {kind.name}" in line]
    assert len(told) == (ours > theirs)
    if told:
        assert re.search(rf"^15 tensors .* take {ours:.1f} bits a weight, [1-4]\.\d times", told[0])


def test_a_mixed_file_keeps_every_part_as_it_is(tmp_path: Path) -> None:
    kinds = {"v_proj": Kind.Q6_K, "down_proj": Kind.Q6_K, "layers.1.mlp.up": Kind.Q5_K}
    source = tiny.write_gguf(tmp_path / "m.gguf", SUPER, Kind.Q4_K, Kind.Q6_K, kinds=kinds)
    made = make_bundle(source, tmp_path / "out")
    assert made.self_check["exact_tensors"] == made.self_check["tensors"]
    sizes = {name: v.size for name, v in tiny.weights(SUPER).items() if v.ndim == 2}
    # Codes, a byte for each scale and minimum, and a float16 or two for every 256 weights.
    bits = {Kind.Q4_K: 4.625, Kind.Q5_K: 8.625, Kind.Q6_K: 8.5625}
    wanted = 4 * sum(v.size for v in tiny.weights(SUPER).values() if v.ndim == 1)
    for name, size in sizes.items():
        outer = Kind.Q6_K if "embed" in name else Kind.Q4_K
        wanted += size * bits[next((k for p, k in kinds.items() if p in name), outer)] / 8
    wanted += 2 * 4 * SUPER.context * SUPER.width // 2  # rotary tables
    found = made.files["onnx/model_q4.onnx_data"].bytes
    assert wanted <= found <= wanted + 64 * 120


def test_parts_that_differ_compute_what_they_should(tmp_path: Path) -> None:
    kinds = {"q_proj": Kind.Q4_K, "k_proj": Kind.Q8_0, "v_proj": Kind.Q6_K, "up_proj": Kind.F16}
    source = tiny.write_gguf(tmp_path / "m.gguf", SUPER, Kind.Q4_0, kinds=kinds)
    built = tiny.build(open_checkpoint(source), "exact", tmp_path / "out")
    checkpoint = GgufCheckpoint(source)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"):
        name = f"model.layers.1.{part}.weight"
        assert np.array_equal(built.stored(name), to_float32(checkpoint.weight(name)))
    assert isinstance(built.stored.weight("model.layers.0.self_attn.v_proj.weight"), Blocks)
    ids = list(range(3, 20))
    wanted = reference.forward(built.config, built.stored, ids)
    found = tiny.logits(built, ids)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_type_without_an_equal_is_dequantized_and_the_user_is_told(tmp_path: Path) -> None:
    source = tiny.write_gguf(
        tmp_path / "m.gguf", SUPER, Kind.Q8_0, kinds={"0.mlp.gate": Kind.IQ2_XXS}
    )
    checkpoint = GgufCheckpoint(source)
    expected = gguf.quants.dequantize(
        tiny.quantized(tiny.weights(SUPER)[GATE], Kind.IQ2_XXS), Kind.IQ2_XXS
    )
    assert np.array_equal(to_float32(checkpoint.weight(GATE)), expected)
    assert checkpoint.notices == [
        "1 tensors of type IQ2_XXS are dequantized: not carried over exactly"
    ]


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q4_K, Kind.Q6_K, Kind.IQ4_XS, Kind.TQ1_0])
def test_an_infinite_scale_is_refused_by_the_tensors_name(kind: Kind, tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", SUPER, kinds={"0.mlp.gate": kind})
    reader = gguf.GGUFReader(source, "r+")
    (entry,) = [t for t in reader.tensors if t.name == "blk.0.ffn_gate.weight"]
    _, size = gguf.constants.GGML_QUANT_SIZES[kind]
    offset = {Kind.Q2_K: 82, Kind.Q4_K: 2, Kind.Q6_K: 208, Kind.IQ4_XS: 0, Kind.TQ1_0: 52}[kind]
    infinite = np.array([np.inf], np.float16).view(np.uint8)
    entry.data.reshape(-1, size)[:, offset : offset + 2] = infinite
    reader.data.flush()
    with pytest.raises(Corrupt, match=r"'blk.0.ffn_gate.weight' holds infinite"):
        GgufCheckpoint(source).weight(GATE)
