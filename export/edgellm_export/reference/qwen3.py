"""model_type "qwen3": Llama with a norm on every query and key head before it is turned."""

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
    x = weight("model.embed_tokens.weight")[np.asarray(ids)]  # (T, D)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = parts.rms_norm(x, weight(f"{at}.input_layernorm.weight"), eps)
        q, k, v = (parts.heads(h @ weight(f"{at}.self_attn.{p}_proj.weight").T, n) for p in "qkv")
        q = parts.rms_norm(q, weight(f"{at}.self_attn.q_norm.weight"), eps)
        k = parts.rms_norm(k, weight(f"{at}.self_attn.k_norm.weight"), eps)
        y = parts.attend(parts.rotate(q, cos, sin), parts.rotate(k, cos, sin), v)
        x = x + y @ weight(f"{at}.self_attn.o_proj.weight").T
        h = parts.rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        x = x + parts.gated_mlp(weight, f"{at}.mlp", h)
    return parts.head(config, weight, parts.rms_norm(x, weight("model.norm.weight"), eps))
