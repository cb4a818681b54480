"""Tiny seeded random models of every architecture beside Llama, as real files.

A further architecture is a row in CONFIGS, and in EXTRAS if it has tensors that Llama lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny_models as tiny
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]

SIZES: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What is special of each, at sizes where it shows in the 24 tokens of a test. Heads are wider than
# hidden / heads where the published models have them so.
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {"head_dim": 32, "sliding_window": 7},
    "qwen2": {
        "use_sliding_window": False,
        "sliding_window": 7,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"head_dim": 32, "rope_theta": 1e6, "tie_word_embeddings": True},
    # The second layer of every two knows no positions.
    "smollm3": {
        "num_hidden_layers": 4,
        "no_rope_layer_interval": 2,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "olmo2": {"num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "tie_word_embeddings": True,
    },
}
CLASSES = {
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "granite": "GraniteForCausalLM",
}


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    """What its config.json says."""
    known = {"model_type": model_type, "architectures": [CLASSES[model_type]]}
    return {**known, **SIZES, "vocab_size": tiny.vocab_size(), **CONFIGS[model_type], **changes}


def _biases(c: Mapping[str, Any], at: str) -> Shapes:
    query, key = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    sizes = {"q": query, "k": key, "v": key}
    return {f"{at}.self_attn.{part}_proj.bias": (size,) for part, size in sizes.items()}


def _head_norms(c: Mapping[str, Any], at: str) -> Shapes:
    return {f"{at}.self_attn.{part}_norm.weight": (c["head_dim"],) for part in "qk"}


def _olmo2_norms(c: Mapping[str, Any], at: str) -> Shapes:
    return {
        f"{at}.self_attn.q_norm.weight": (c["num_attention_heads"] * c["head_dim"],),
        f"{at}.self_attn.k_norm.weight": (c["num_key_value_heads"] * c["head_dim"],),
        f"{at}.post_feedforward_layernorm.weight": (c["hidden_size"],),
    }


EXTRAS: dict[str, Callable[[Mapping[str, Any], str], Shapes]] = {
    "qwen2": _biases,
    "qwen3": _head_norms,
    "olmo2": _olmo2_norms,
}


def shapes(c: Mapping[str, Any]) -> Shapes:
    """Every tensor by Hugging Face's name."""
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    query, key = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    found: Shapes = {
        "model.embed_tokens.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        found |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (query, hidden),
            f"{at}.self_attn.k_proj.weight": (key, hidden),
            f"{at}.self_attn.v_proj.weight": (key, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, query),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
        }
        if c["model_type"] in EXTRAS:
            found |= EXTRAS[c["model_type"]](c, at)
        if c["model_type"] == "olmo2":
            del found[f"{at}.input_layernorm.weight"]
    return found


def weights(c: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Seeded random values: norms around 1, biases around 0, both far enough to be missed."""
    rng = np.random.default_rng(11)
    found = {}
    for name, shape in shapes(c).items():
        values = rng.standard_normal(shape)
        if name.endswith(".bias"):
            values *= 0.5
        elif len(shape) == 1:
            values = 1 + 0.3 * values
        else:
            values /= np.sqrt(shape[1])
        found[name] = values.astype(np.float32)
    return found


def write_folder(
    folder: Path,
    model_type: str,
    dtype: str = "F32",
    tensors: Mapping[str, NDArray[Any] | None] | None = None,
    **changes: Any,
) -> Path:
    """`folder` as Hugging Face has it. `tensors` replaces some; None removes one."""
    c = config(model_type, **changes)
    not_llamas = dict.fromkeys(tiny.weights(tiny.TINY), None)
    mine = {**not_llamas, **weights(c), **(tensors or {})}
    return tiny.write_folder(folder, tiny.TINY, dtype, changes=mine, config=c)


# The rows of q and k that llama.cpp's converter interleaves: classes derived from its LlamaModel.
PERMUTED = ("smollm3", "granite")
GGUF_ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "granite": gguf.MODEL_ARCH.GRANITE,
}


def write_gguf(
    path: Path, model_type: str, kind: Kind, embedding: Kind = Kind.Q8_0, granite: bool = True
) -> Path:
    """The same model as a GGUF file, tensors named by gguf's own table; `granite` False leaves
    Granite's own keys out."""
    # GGUF has no word for the layers without RoPE; llama.cpp takes every fourth.
    c = config(model_type, **({"no_rope_layer_interval": 4} if model_type == "smollm3" else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, model_type)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    if model_type == "granite" and granite:
        writer.add_attention_scale(c["attention_multiplier"])
        writer.add_embedding_scale(c["embedding_multiplier"])
        writer.add_residual_scale(c["residual_multiplier"])
        writer.add_logit_scale(c["logits_scaling"])
    tiny._add_tokenizer(writer)
    names = gguf.get_tensor_name_map(GGUF_ARCHITECTURES[model_type], c["num_hidden_layers"])
    for name, values in weights(c).items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        outer = theirs in ("token_embd.weight", "output.weight")
        chosen = Kind.F32 if values.ndim == 1 else embedding if outer else kind
        rows = _interleaved(name, values, c)
        writer.add_tensor(theirs, gguf.quants.quantize(rows, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(name: str, values: NDArray[Any], c: Mapping[str, Any]) -> NDArray[Any]:
    part = name.rpartition(".self_attn.")[2]
    counts = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    if c["model_type"] not in PERMUTED or part not in counts:
        return values
    rows, inner = values.shape
    split = values.reshape(c[counts[part]], 2, -1, inner)
    return split.swapaxes(1, 2).reshape(rows, inner)
