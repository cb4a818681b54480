"""Tiny models of tiny_archs as GGUF files, as llama.cpp's converter would write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny_archs as archs
import tiny_models as tiny
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

# Only what a GGUF can say: it takes the width of a head for the scale of Gemma's queries, and
# every layer of Qwen3-MoE for one with experts.
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": {**archs.GEMMA2, "query_pre_attn_scalar": 48},
    "gemma3": {**archs.GEMMA3, "query_pre_attn_scalar": 32},
    "phi3": archs.PHI3,
    "phi3-long": archs.LONG_PHI3,
    "qwen3moe": {**archs.QWEN3_MOE, "mlp_only_layers": []},
}
ARCHITECTURES = {
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "phi3-long": gguf.MODEL_ARCH.PHI3,
    "qwen3moe": gguf.MODEL_ARCH.QWEN3MOE,
}


def write(path: Path, name: str, kind: Kind = Kind.F32, **keys: int) -> Path:
    """The model CONFIGS[name] with matrices of `kind`; `keys` replaces numbers of its metadata."""
    c = CONFIGS[name]
    arch = ARCHITECTURES[name]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    width = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    numbers = {
        "block_count": c["num_hidden_layers"],
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "feed_forward_length": c["intermediate_size"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"],
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.sliding_window": c["sliding_window"] or 0,
        **_own_numbers(c),
    }
    if c["model_type"] == "qwen3_moe":
        del numbers["attention.sliding_window"]
    for key, number in (numbers | keys).items():
        writer.add_uint32(f"{writer.arch}.{key}", number)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    _own_settings(writer, c)
    tiny._add_tokenizer(writer)
    names = gguf.get_tensor_name_map(arch, c["num_hidden_layers"])
    for theirs, values in _tensors(c).items():
        ours = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        chosen = Kind.F32 if values.ndim == 1 or "gate_inp" in ours else kind
        writer.add_tensor(ours, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _own_numbers(c: Mapping[str, Any]) -> dict[str, int]:
    match c["model_type"]:
        case "gemma3_text":
            return {"attention.sliding_window_pattern": c["sliding_window_pattern"]}
        case "phi3":
            width = c["hidden_size"] // c["num_attention_heads"]
            return {
                "rope.dimension_count": int(c.get("partial_rotary_factor", 1) * width),
                "rope.scaling.original_context_length": c["original_max_position_embeddings"],
            }
        case "qwen3_moe":
            return {
                "expert_count": c["num_experts"],
                "expert_used_count": c["num_experts_per_tok"],
                "expert_feed_forward_length": c["moe_intermediate_size"],
            }
        case _:
            return {}


def _own_settings(writer: gguf.GGUFWriter, c: Mapping[str, Any]) -> None:
    if c["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(c["final_logit_softcapping"])
    if c["model_type"] == "gemma3_text":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c["rope_scaling"]["factor"])
    if c["model_type"] == "phi3" and c.get("rope_scaling"):
        original = c["original_max_position_embeddings"]
        stretch = c["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
        for kind in ("short", "long"):
            factors = np.array(c["rope_scaling"][f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def _tensors(c: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Gemma's norms with 1 folded in, the experts of a layer in one tensor each."""
    found: dict[str, NDArray[np.float32]] = {}
    experts: dict[str, list[NDArray[np.float32]]] = {}
    for name, values in archs.tensors(c).items():
        if ".experts." in name:
            layer, _, part = name.partition(".experts.")
            experts.setdefault(f"{layer}.experts.{part.partition('.')[2]}", []).append(values)
        elif c["model_type"].startswith("gemma") and name.endswith("norm.weight"):
            found[name] = values + 1
        else:
            found[name] = values
    return found | {name: np.stack(parts) for name, parts in experts.items()}
