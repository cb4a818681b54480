"""model_type "mistral": Llama whose tokens may see only so far back."""

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
    eps, n, window = config["rms_norm_eps"], config["head_dim"], config.get("sliding_window", 4096)
    x = weight("model.embed_tokens.weight")[np.asarray(ids)]  # (T, D)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = parts.rms_norm(x, weight(f"{at}.input_layernorm.weight"), eps)
        q, k, v = (parts.heads(h @ weight(f"{at}.self_attn.{p}_proj.weight").T, n) for p in "qkv")
        q, k = parts.rotate(q, cos, sin), parts.rotate(k, cos, sin)
        x = x + parts.attend(q, k, v, window=window) @ weight(f"{at}.self_attn.o_proj.weight").T
        h = parts.rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        x = x + parts.gated_mlp(weight, f"{at}.mlp", h)
    return parts.head(config, weight, parts.rms_norm(x, weight("model.norm.weight"), eps))
