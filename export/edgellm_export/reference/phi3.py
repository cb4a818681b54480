"""model_type "phi3": fused projections, rotary on part of a head, long-rope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgellm_export.reference import parts
from edgellm_export.reference.parts import Weight
from edgellm_export.weights import Float32


def forward(config: Mapping[str, Any], weight: Weight, ids: Sequence[int]) -> Float32:
    """Logits (T, V) after each of `ids`, read as one text: its length chooses the factors."""
    cos, sin = _rotary(config, len(ids))
    eps, kv = config["rms_norm_eps"], config["num_key_value_heads"]
    x = weight("model.embed_tokens.weight")[np.asarray(ids)]  # (T, D)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = parts.rms_norm(x, weight(f"{at}.input_layernorm.weight"), eps)
        qkv = parts.heads(h @ weight(f"{at}.self_attn.qkv_proj.weight").T, config["head_dim"])
        q, k, v = qkv[:, : -2 * kv], qkv[:, -2 * kv : -kv], qkv[:, -kv:]
        q, k = parts.rotate(q, cos, sin), parts.rotate(k, cos, sin)
        y = parts.attend(q, k, v, window=config.get("sliding_window"))
        x = x + y @ weight(f"{at}.self_attn.o_proj.weight").T
        h = parts.rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        gate, up = np.split(h @ weight(f"{at}.mlp.gate_up_proj.weight").T, 2, axis=-1)
        x = x + (parts.silu(gate) * up) @ weight(f"{at}.mlp.down_proj.weight").T
    return parts.head(config, weight, parts.rms_norm(x, weight("model.norm.weight"), eps))


def _rotary(config: Mapping[str, Any], tokens: int) -> tuple[Float32, Float32]:
    """Tables of the short factors, beyond the original window of the long ones.

    Ding et al., arXiv:2402.13753.
    """
    width = int(config["head_dim"] * config.get("partial_rotary_factor", 1.0))
    waves = config["rope_theta"] ** (np.arange(0, width, 2) / width)
    scaling = config.get("rope_scaling")
    if not scaling:
        return parts.tables(1 / waves, tokens)
    key = "original_max_position_embeddings"
    original = config.get(key) or scaling.get(key) or 4096
    stretch = scaling.get("factor") or config["max_position_embeddings"] / original
    grown = 1 + np.log(max(stretch, 1)) / np.log(original)
    factor = np.float32(scaling.get("attention_factor") or np.sqrt(grown))
    fits = tokens <= min(original, config["max_position_embeddings"])
    factors = scaling["short_factor" if fits else "long_factor"]
    cos, sin = parts.tables(1 / (np.array(factors) * waves), tokens)
    return factor * cos, factor * sin
