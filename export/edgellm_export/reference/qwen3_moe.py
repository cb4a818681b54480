"""model_type "qwen3_moe": Qwen3 whose tokens each go through the likeliest of many MLPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgellm_export.reference import parts
from edgellm_export.reference.parts import Weight
from edgellm_export.weights import Float32


def forward(config: Mapping[str, Any], weight: Weight, ids: Sequence[int]) -> Float32:
    """Logits (T, V) after each of `ids`."""
    cos, sin = parts.cos_sin(config, len(ids))
    eps, n = config["rms_norm_eps"], config["head_dim"]
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    x = weight("model.embed_tokens.weight")[np.asarray(ids)]  # (T, D)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = parts.rms_norm(x, weight(f"{at}.input_layernorm.weight"), eps)
        q, k, v = (parts.heads(h @ weight(f"{at}.self_attn.{p}_proj.weight").T, n) for p in "qkv")
        q = parts.rms_norm(q, weight(f"{at}.self_attn.q_norm.weight"), eps)
        k = parts.rms_norm(k, weight(f"{at}.self_attn.k_norm.weight"), eps)
        q, k = parts.rotate(q, cos, sin), parts.rotate(k, cos, sin)
        y = parts.attend(q, k, v, window=window)
        x = x + y @ weight(f"{at}.self_attn.o_proj.weight").T
        h = parts.rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        one = i in (config.get("mlp_only_layers") or ())
        one = one or (i + 1) % config.get("decoder_sparse_step", 1) != 0
        mlp = parts.gated_mlp(weight, f"{at}.mlp", h) if one else _mixture(config, weight, at, h)
        x = x + mlp
    return parts.head(config, weight, parts.rms_norm(x, weight("model.norm.weight"), eps))


def _mixture(config: Mapping[str, Any], weight: Weight, at: str, h: Float32) -> Float32:
    """Each token through its likeliest experts, weighted by their probabilities: (T, D)."""
    chances = parts.softmax(h @ weight(f"{at}.mlp.gate.weight").T)  # (T, E)
    chosen = np.argsort(-chances, axis=-1)[:, : config["num_experts_per_tok"]]
    shares = np.take_along_axis(chances, chosen, axis=-1)
    if config.get("norm_topk_prob"):
        shares = shares / shares.sum(axis=-1, keepdims=True)
    out = np.zeros_like(h)
    for expert in range(chances.shape[1]):
        token, place = np.nonzero(chosen == expert)
        if len(token):
            y = parts.gated_mlp(weight, f"{at}.mlp.experts.{expert}", h[token])
            out[token] += y * shares[token, place, None]
    return out
