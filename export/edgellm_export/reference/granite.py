"""model_type "granite": Llama with four multipliers: embedding, attention, residual, logits."""

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
    scale = config.get("attention_multiplier", 1.0)
    residual = np.float32(config.get("residual_multiplier", 1.0))
    x = weight("model.embed_tokens.weight")[np.asarray(ids)]  # (T, D)
    x = x * np.float32(config.get("embedding_multiplier", 1.0))
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = parts.rms_norm(x, weight(f"{at}.input_layernorm.weight"), eps)
        q, k, v = (parts.heads(h @ weight(f"{at}.self_attn.{p}_proj.weight").T, n) for p in "qkv")
        y = parts.attend(parts.rotate(q, cos, sin), parts.rotate(k, cos, sin), v, scale)
        x = x + y @ weight(f"{at}.self_attn.o_proj.weight").T * residual
        h = parts.rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        x = x + parts.gated_mlp(weight, f"{at}.mlp", h) * residual
    x = parts.rms_norm(x, weight("model.norm.weight"), eps)
    return parts.head(config, weight, x) / np.float32(config.get("logits_scaling", 1.0))
