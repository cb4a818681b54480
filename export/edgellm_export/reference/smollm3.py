"""model_type "smollm3": Llama with layers that know nothing of positions."""

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
    layers, every = config["num_hidden_layers"], config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers") or [(i + 1) % every for i in range(layers)]
    x = weight("model.embed_tokens.weight")[np.asarray(ids)]  # (T, D)
    for i in range(layers):
        at = f"model.layers.{i}"
        h = parts.rms_norm(x, weight(f"{at}.input_layernorm.weight"), eps)
        q, k, v = (parts.heads(h @ weight(f"{at}.self_attn.{p}_proj.weight").T, n) for p in "qkv")
        if turned[i]:
            q, k = parts.rotate(q, cos, sin), parts.rotate(k, cos, sin)
        x = x + parts.attend(q, k, v) @ weight(f"{at}.self_attn.o_proj.weight").T
        h = parts.rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        x = x + parts.gated_mlp(weight, f"{at}.mlp", h)
    x = parts.rms_norm(x, weight("model.norm.weight"), eps)
    return parts.head(config, weight, x, tied=True)
