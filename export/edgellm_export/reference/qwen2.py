"""model_type "qwen2": Llama with biases on query, key and value."""

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
        q, k, v = (h @ weight(f"{at}.self_attn.{p}_proj.weight").T for p in "qkv")
        biases = (weight(f"{at}.self_attn.{p}_proj.bias") for p in "qkv")
        q, k, v = (parts.heads(p + b, n) for p, b in zip((q, k, v), biases, strict=True))
        y = parts.attend(parts.rotate(q, cos, sin), parts.rotate(k, cos, sin), v)
        x = x + y @ weight(f"{at}.self_attn.o_proj.weight").T
        h = parts.rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        x = x + parts.gated_mlp(weight, f"{at}.mlp", h)
    return parts.head(config, weight, parts.rms_norm(x, weight("model.norm.weight"), eps))
