"""The architectures that GGUF is read for: names of tensors, and what their configs say.

A further one is one more row in ARCHITECTURES, and a function if it has keys of its own.
Sources: convert_hf_to_gguf.py in llama.cpp for what was done to the weights and which keys are
written, src/models/ there for what is meant when a key is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm_export.checkpoint.gguf_keys import Keys

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# The norm before the MLP has another name where there is one behind it too.
_FOUR_NORMS = {**_LAYER, **_POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
_FUSED = {
    k: v for k, v in _LAYER.items() if k not in ("attn_q", "attn_k", "attn_v", "ffn_gate")
} | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_EXPERTS = {f"ffn_{part}_exps": f"{part}_proj" for part in ("gate", "up", "down")}

_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """`permuted`: rows of q and k are interleaved for GGML's rotary embedding. `multipliers`:
    factors of the config by GGUF's keys, which must all be there. `experts`: names of tensors that
    hold the matrices of all experts. `norms_added` was added to the weights of norms.
    `parts_of_heads`: keys whose width may be less than a head's. `also`: what the config says
    beyond what all have.
    """

    model_type: str
    class_name: str
    layer: Mapping[str, str]
    permuted: bool = False
    multipliers: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    norms_added: float = 0.0
    parts_of_heads: tuple[str, ...] = ()
    also: Callable[[Keys, Mapping[str, Any]], dict[str, Any]] = lambda keys, config: {}


def _gemma2(keys: Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(config, layers_of_27b=46),
        "sliding_window": keys.whole("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.decimal("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.decimal("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    window = keys.whole("attention.sliding_window", 0)
    cap = keys.decimal("final_logit_softcapping", 0.0)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(config, layers_of_27b=62),
        "sliding_window": window or None,
        # Without a window no layer is local; with one, every sixth is not.
        "sliding_window_pattern": keys.whole(
            "attention.sliding_window_pattern", 6 if window else 1
        ),
        "rope_local_base_freq": keys.decimal("rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": cap or None,
    }


def _query_scalar(config: Mapping[str, Any], layers_of_27b: int) -> int:
    """The file does not say it; llama.cpp's gemma2.cpp and gemma3.cpp go by the size as well."""
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _phi3(keys: Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    turned = keys.whole("rope.dimension_count", config["head_dim"])
    original = keys.whole("rope.scaling.original_context_length", config["max_position_embeddings"])
    found = {
        "partial_rotary_factor": turned / config["head_dim"],
        "original_max_position_embeddings": original,
    }
    short, long = (keys.numbers(f"rope_factors_{name}.weight") for name in ("short", "long"))
    if not short:
        return found
    scaling: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    factor = keys.decimal("rope.scaling.attn_factor", 0.0)
    if factor:
        scaling["attention_factor"] = factor
    return {**found, "rope_scaling": scaling}


def _qwen3_moe(keys: Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = range(config["num_hidden_layers"])
    routers = [f"blk.{i}.ffn_gate_inp.weight" in keys.file.tensors for i in layers]
    return {
        "num_experts": keys.whole("expert_count"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,  # as llama.cpp's qwen3moe.cpp does; the file does not say it
        "mlp_only_layers": [i for i in layers if not routers[i]],
    }


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _LAYER, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LAYER),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**_LAYER, **_HEAD_NORMS}),
    # Which of its layers have no RoPE is not in the file: every fourth, as llama.cpp has it.
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _LAYER, permuted=True),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        {k: v for k, v in _LAYER.items() if "norm" not in k} | _HEAD_NORMS | _POST_NORMS,
    ),
    "granite": Architecture(
        "granite", "GraniteForCausalLM", _LAYER, permuted=True, multipliers=_GRANITE
    ),
    "gemma2": Architecture(
        "gemma2", "Gemma2ForCausalLM", _FOUR_NORMS, norms_added=1.0, also=_gemma2
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_FOUR_NORMS, **_HEAD_NORMS},
        norms_added=1.0,
        also=_gemma3,
    ),
    "phi3": Architecture(
        "phi3", "Phi3ForCausalLM", _FUSED, parts_of_heads=("rope.dimension_count",), also=_phi3
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_LAYER, **_HEAD_NORMS, "ffn_gate_inp": "mlp.gate"},
        experts=_EXPERTS,
        also=_qwen3_moe,
    ),
}
