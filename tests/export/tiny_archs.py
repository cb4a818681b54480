"""Tiny seeded random models of further architectures, by Hugging Face's names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models as tiny
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

HIDDEN, INNER, VOCABULARY = 128, 192, tiny.vocab_size()
COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": 8,
}
GEMMA2: dict[str, Any] = {
    **COMMON,
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "head_dim": 48,  # not hidden / heads
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 40,
    "attn_logit_softcapping": 2.0,  # low, so that it is felt
    "final_logit_softcapping": 3.0,
}
GEMMA3: dict[str, Any] = {
    **COMMON,
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 40,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "sliding_window_pattern": 2,
}
PHI3: dict[str, Any] = {
    **COMMON,
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "original_max_position_embeddings": 64,
}
# As Phi-4-mini: part of a head is turned, and the window is stretched.
LONG_PHI3: dict[str, Any] = {
    **PHI3,
    "tie_word_embeddings": True,
    "sliding_window": None,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 48,
    "partial_rotary_factor": 0.5,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0],
    },
}
QWEN3_MOE: dict[str, Any] = {
    **COMMON,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_act": "silu",
    "head_dim": 48,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}


def write(folder: Path, config: Mapping[str, Any], dtype: str = "F32", seed: int = 0) -> Path:
    return tiny.write_model(folder, config, tensors(config, seed), dtype)


def tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Seeded random tensors for a config above, or one like it."""
    made = _Random(seed, config)
    found = {"model.embed_tokens.weight": made.matrix(VOCABULARY, HIDDEN)}
    found["model.norm.weight"] = made.norm(HIDDEN)
    if not config.get("tie_word_embeddings", config["model_type"].startswith("gemma")):
        found["lm_head.weight"] = made.matrix(VOCABULARY, HIDDEN)
    for i in range(config["num_hidden_layers"]):
        layer = made.attention() | made.mlp(i)
        found |= {f"model.layers.{i}.{name}.weight": values for name, values in layer.items()}
    return found


class _Random:
    def __init__(self, seed: int, config: Mapping[str, Any]) -> None:
        self.rng = np.random.default_rng(seed)
        self.config = config
        self.kind = config["model_type"]

    def matrix(self, out: int, inner: int) -> NDArray[np.float32]:
        return (self.rng.standard_normal((out, inner)) / np.sqrt(inner)).astype(np.float32)

    def norm(self, width: int) -> NDArray[np.float32]:
        middle = 0 if self.kind.startswith("gemma") else 1
        return (middle + 0.2 * self.rng.standard_normal(width)).astype(np.float32)

    def attention(self) -> Tensors:
        c = self.config
        width = c.get("head_dim", HIDDEN // c["num_attention_heads"])
        query, key = c["num_attention_heads"] * width, c["num_key_value_heads"] * width
        found = {
            "input_layernorm": self.norm(HIDDEN),
            "post_attention_layernorm": self.norm(HIDDEN),
            "self_attn.o_proj": self.matrix(HIDDEN, query),
        }
        if self.kind == "phi3":
            return found | {"self_attn.qkv_proj": self.matrix(query + 2 * key, HIDDEN)}
        found |= {
            "self_attn.q_proj": self.matrix(query, HIDDEN),
            "self_attn.k_proj": self.matrix(key, HIDDEN),
            "self_attn.v_proj": self.matrix(key, HIDDEN),
        }
        if self.kind in ("gemma3_text", "qwen3_moe"):
            found |= {f"self_attn.{p}_norm": self.norm(width) for p in "qk"}
        if self.kind.startswith("gemma"):
            found["pre_feedforward_layernorm"] = self.norm(HIDDEN)
            found["post_feedforward_layernorm"] = self.norm(HIDDEN)
        return found

    def mlp(self, layer: int) -> Tensors:
        c = self.config
        if self.kind == "phi3":
            return {
                "mlp.gate_up_proj": self.matrix(2 * INNER, HIDDEN),
                "mlp.down_proj": self.matrix(HIDDEN, INNER),
            }
        count = c.get("num_experts", c.get("num_local_experts"))
        if count is None or layer in c["mlp_only_layers"] or (layer + 1) % c["decoder_sparse_step"]:
            return self.gated("mlp", INNER)
        found = {"mlp.gate": 3 * self.matrix(count, HIDDEN)}
        for expert in range(count):
            found |= self.gated(f"mlp.experts.{expert}", c["moe_intermediate_size"])
        return found

    def gated(self, at: str, inner: int) -> Tensors:
        return {
            f"{at}.gate_proj": self.matrix(inner, HIDDEN),
            f"{at}.up_proj": self.matrix(inner, HIDDEN),
            f"{at}.down_proj": self.matrix(HIDDEN, inner),
        }
