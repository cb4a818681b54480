"""GGUF as a checkpoint: the numbers that come out are the numbers that were put in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.gguf import GgufCheckpoint, half_split_order
from edgellm_export.checkpoint.gguf_config import llama3_factors
from edgellm_export.weights import Blocks, Dense, pack, to_float32

Array = NDArray[Any]
HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, VOCAB = 64, 96, 4, 2, 16, 50
SHAPES = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HEADS * WIDTH, HIDDEN),
    "attn_k": (KV_HEADS * WIDTH, HIDDEN),
    "attn_v": (KV_HEADS * WIDTH, HIDDEN),
    "attn_output": (HIDDEN, HEADS * WIDTH),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def tensors(seed: int = 0) -> dict[str, Array]:
    """One layer of seeded random weights, by GGUF name."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN)}
    shapes |= {f"blk.0.{name}.weight": shape for name, shape in SHAPES.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    return {k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


def write(
    path: Path,
    weights: Mapping[str, Array],
    kinds: Mapping[str, Kind] | None = None,
    metadata: Mapping[str, Any] | None = None,
    arch: str = "llama",
) -> Path:
    """A GGUF file by gguf's own writer; a metadata value of None removes that key."""
    writer = gguf.GGUFWriter(path, arch)
    keys: dict[str, Any] = {
        f"{arch}.block_count": 1,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": INNER,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 100000.0,
        "general.license": "apache-2.0",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **(metadata or {}),
    }
    for key, value in keys.items():
        add_value(writer, key, value)
    for name, values in weights.items():
        kind = (kinds or {}).get(name, Kind.F32)
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=None if kind in (Kind.F32, Kind.F16) else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


EXACT = [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0]
EVERY_LINEAR = [n for n, a in tensors().items() if a.ndim == 2]


@pytest.mark.parametrize("kind", EXACT)
def test_quantized_blocks_keep_their_integers_and_their_values(tmp_path: Path, kind: Kind) -> None:
    weights = tensors()
    file = write(tmp_path / "m.gguf", weights, dict.fromkeys(EVERY_LINEAR, kind))
    checkpoint = GgufCheckpoint(file)
    blocks = checkpoint.weight("model.layers.0.mlp.gate_proj.weight")
    assert isinstance(blocks, Blocks)
    raw = gguf.quants.quantize(weights["blk.0.ffn_gate.weight"], kind).reshape(
        INNER, HIDDEN // 32, -1
    )
    assert np.array_equal(blocks.codes().reshape(INNER, -1, 32), ggml_codes(raw, kind))
    assert np.array_equal(blocks.packed, pack(blocks.codes(), blocks.bits, 32))
    assert np.array_equal(blocks.scales.view(np.uint8).reshape(INNER, -1, 2), raw[..., :2])
    oracle = gguf.quants.dequantize(raw.reshape(INNER, -1), kind)
    spread = np.ptp(oracle.reshape(INNER, -1, 32), axis=-1).max()
    assert np.abs(blocks.dequantize() - oracle).max() <= 1e-6 * spread
    assert checkpoint.notices == []


def ggml_codes(raw: Array, kind: Kind) -> Array:
    """The unsigned integers of a block, as ggml-common.h lays them out."""
    if kind == Kind.Q8_0:
        return (raw[..., 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    halves = raw[..., 2 if kind == Kind.Q4_0 else 4 :]
    return np.concatenate([halves & 15, halves >> 4], axis=-1)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16])
def test_float_tensors_are_exact(tmp_path: Path, kind: Kind) -> None:
    weights = tensors()
    file = write(tmp_path / "m.gguf", weights, dict.fromkeys(EVERY_LINEAR, kind))
    found = GgufCheckpoint(file).weight("model.layers.0.mlp.down_proj.weight")
    assert isinstance(found, Dense)
    values = weights["blk.0.ffn_down.weight"]
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    assert np.array_equal(found.numpy(), expected)
    assert found.dtype == {Kind.F32: "float32", Kind.F16: "float16", Kind.BF16: "bfloat16"}[kind]


def converter_permute(weights: Array, heads: int) -> Array:
    """`permute` of llama.cpp's convert_hf_to_gguf.py, literally."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


@pytest.mark.parametrize("heads", [1, 3, 9])
def test_row_order_undoes_the_converters_permutation(heads: int) -> None:
    original = np.arange(heads * 16 * 5).reshape(heads * 16, 5)
    assert np.array_equal(
        converter_permute(original, heads)[half_split_order(heads * 16, heads)], original
    )


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
@pytest.mark.parametrize(
    ("gguf_name", "hf_name", "heads"), [("q", "q", HEADS), ("k", "k", KV_HEADS)]
)
def test_query_and_key_rows_come_back_in_hugging_faces_order(
    tmp_path: Path, kind: Kind, gguf_name: str, hf_name: str, heads: int
) -> None:
    weights = tensors()
    name = f"blk.0.attn_{gguf_name}"
    original = weights[f"{name}.weight"]
    weights[f"{name}.weight"] = converter_permute(original, heads)
    weights[f"{name}.bias"] = converter_permute(original[:, 0].copy(), heads)
    checkpoint = GgufCheckpoint(write(tmp_path / "m.gguf", weights, {f"{name}.weight": kind}))
    stem = f"model.layers.0.self_attn.{hf_name}_proj"
    expected = gguf.quants.dequantize(gguf.quants.quantize(original, kind), kind)
    assert np.allclose(to_float32(checkpoint.weight(f"{stem}.weight")), expected, rtol=0, atol=1e-6)
    assert np.array_equal(to_float32(checkpoint.weight(f"{stem}.bias")), original[:, 0])


def test_qwen_rows_are_left_alone(tmp_path: Path) -> None:
    weights = tensors()
    checkpoint = GgufCheckpoint(write(tmp_path / "m.gguf", weights, arch="qwen2"))
    found = to_float32(checkpoint.weight("model.layers.0.self_attn.q_proj.weight"))
    assert np.array_equal(found, weights["blk.0.attn_q.weight"])
    assert checkpoint.config["architectures"] == ["Qwen2ForCausalLM"]


def test_config_has_hugging_faces_keys(tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(write(tmp_path / "m.gguf", tensors()))
    expected = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH,
        "rms_norm_eps": 1e-5,  # not 9.999999747378752e-06
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert checkpoint.licence == "apache-2.0"
    untied = tensors() | {"output.weight": np.ones((VOCAB, HIDDEN), np.float32)}
    checkpoint = GgufCheckpoint(write(tmp_path / "untied.gguf", untied))
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in checkpoint.names()


def test_llama3_rope_factors_become_their_settings(tmp_path: Path) -> None:
    settings = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    table = llama3_factors(settings, 100000.0, WIDTH).astype(np.float32)
    checkpoint = GgufCheckpoint(
        write(tmp_path / "m.gguf", tensors() | {"rope_freqs.weight": table})
    )
    assert checkpoint.config["rope_scaling"] == settings
    assert "rope_freqs.weight" not in checkpoint.names()
    strange = tensors() | {"rope_freqs.weight": table * 1.5}
    with pytest.raises(Incompatible, match="not the table of Llama 3"):
        GgufCheckpoint(write(tmp_path / "strange.gguf", strange))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.embedding_length": None}, "embedding_length is missing"),
        ({"llama.attention.head_count": 0}, "num_attention_heads"),
        ({"llama.attention.head_count": 3}, "attn_q|num_|q_proj"),
        ({"llama.attention.head_count_kv": 3}, "num_key_value_heads must be a divisor"),
        ({"llama.attention.head_count": [4, 4]}, "differs from layer to layer"),
        ({"llama.block_count": 4_000_000_000}, "num_hidden_layers must be"),
        ({"llama.feed_forward_length": 64}, "mlp.*has shape"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
        ({"llama.rope.freq_base": "x"}, "rope.freq_base is 'x', not a number"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count differs"),
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "factor"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"tokenizer.ggml.eos_token_id": 50}, "eos_token_id must be a token id below 50"),
        ({"split.count": 2}, "one part of 2"),
        ({"general.alignment": 48}, "general.alignment is 48"),
    ],
)
def test_impossible_metadata_is_named(tmp_path: Path, metadata: dict[str, Any], words: str) -> None:
    file = write(tmp_path / "m.gguf", tensors(), metadata=metadata)
    with pytest.raises(Corrupt, match=words) as caught:
        GgufCheckpoint(file)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=r"'mamba'.*llama, qwen2, qwen3"):
        GgufCheckpoint(write(tmp_path / "m.gguf", tensors(), arch="mamba"))


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    extra = tensors() | {"blk.0.ffn_gate_exps.weight": np.ones((2, 32), np.float32)}
    with pytest.raises(Incompatible, match=re.escape("'blk.0.ffn_gate_exps.weight'")):
        GgufCheckpoint(write(tmp_path / "m.gguf", extra))


@pytest.mark.parametrize(
    "kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_undefined_numbers_are_refused_by_the_tensors_name(
    tmp_path: Path, kind: Kind, bad: float
) -> None:
    file = write(tmp_path / "m.gguf", tensors(), {"blk.0.ffn_gate.weight": kind})
    reader = gguf.GGUFReader(file, "r+")
    (entry,) = [t for t in reader.tensors if t.name == "blk.0.ffn_gate.weight"]
    # In every one of these types the first number of a row is a weight, or a block's scale.
    dtype = np.float32 if kind == Kind.F32 else np.float16
    pattern = np.array([bad], dtype).view(np.uint8) if kind != Kind.BF16 else bfloat16(bad)
    entry.data.reshape(-1).view(np.uint8)[: pattern.size] = pattern
    reader.data.flush()
    with pytest.raises(Corrupt, match=re.escape("'blk.0.ffn_gate.weight' holds infinite")):
        to_float32(GgufCheckpoint(file).weight("model.layers.0.mlp.gate_proj.weight"))


def bfloat16(value: float) -> Array:
    return np.array([value], np.float32).view(np.uint8)[2:]


@pytest.mark.weights
def test_the_real_file_is_carried_over_exactly(smollm2_gguf: Path) -> None:
    checkpoint = GgufCheckpoint(smollm2_gguf)
    assert (checkpoint.config["hidden_size"], checkpoint.config["num_hidden_layers"]) == (576, 30)
    assert (len(checkpoint.names()), checkpoint.notices, checkpoint.licence) == (
        272,
        [],
        "apache-2.0",
    )
    reader = {t.name: t for t in gguf.GGUFReader(smollm2_gguf).tensors}
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.29.mlp.down_proj.weight", "blk.29.ffn_down.weight"),
        ("model.layers.7.post_attention_layernorm.weight", "blk.7.ffn_norm.weight"),
    ):
        oracle = gguf.quants.dequantize(reader[theirs].data, reader[theirs].tensor_type)
        assert (
            np.abs(to_float32(checkpoint.weight(ours)) - oracle).max()
            <= 1e-6 * np.abs(oracle).max()
        )
    query = reader["blk.3.attn_q.weight"]
    oracle = gguf.quants.dequantize(query.data, query.tensor_type)
    found = to_float32(checkpoint.weight("model.layers.3.self_attn.q_proj.weight"))
    assert np.abs(converter_permute(found, 9) - oracle).max() <= 1e-6 * np.abs(oracle).max()
