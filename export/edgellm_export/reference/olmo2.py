"""model_type "olmo2": norms behind attention and MLP, and one over all query and all key heads."""

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
        q, k, v = (x @ weight(f"{at}.self_attn.{p}_proj.weight").T for p in "qkv")
        q = parts.rms_norm(q, weight(f"{at}.self_attn.q_norm.weight"), eps)
        k = parts.rms_norm(k, weight(f"{at}.self_attn.k_norm.weight"), eps)
        q, k, v = (parts.heads(part, n) for part in (q, k, v))
        y = parts.attend(parts.rotate(q, cos, sin), parts.rotate(k, cos, sin), v)
        y = y @ weight(f"{at}.self_attn.o_proj.weight").T
        x = x + parts.rms_norm(y, weight(f"{at}.post_attention_layernorm.weight"), eps)
        y = parts.gated_mlp(weight, f"{at}.mlp", x)
        x = x + parts.rms_norm(y, weight(f"{at}.post_feedforward_layernorm.weight"), eps)
    return parts.head(config, weight, parts.rms_norm(x, weight("model.norm.weight"), eps))
