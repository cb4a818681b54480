"""model_type "gemma2": four norms of 1 + weight a layer, capped scores, windows in every second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgellm_export.reference import parts
from edgellm_export.reference.parts import Weight
from edgellm_export.weights import Float32


def forward(config: Mapping[str, Any], weight: Weight, ids: Sequence[int]) -> Float32:
    """Logits (T, V) after each of `ids`."""

    def norm(x: Float32, name: str) -> Float32:
        return parts.rms_norm(x, 1 + weight(f"{name}.weight"), config["rms_norm_eps"])

    n = config["head_dim"]
    scale = config.get("query_pre_attn_scalar", 256) ** -0.5
    cap = config.get("attn_logit_softcapping", 50.0)
    cos, sin = parts.cos_sin(config, len(ids))
    x = weight("model.embed_tokens.weight")[np.asarray(ids)] * parts.rounded_root(config)  # (T, D)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = norm(x, f"{at}.input_layernorm")
        q, k, v = (parts.heads(h @ weight(f"{at}.self_attn.{p}_proj.weight").T, n) for p in "qkv")
        q, k = parts.rotate(q, cos, sin), parts.rotate(k, cos, sin)
        window = config.get("sliding_window", 4096) if _sees_window(config, i) else None
        y = parts.attend(q, k, v, scale, window, cap)
        x = x + norm(
            y @ weight(f"{at}.self_attn.o_proj.weight").T, f"{at}.post_attention_layernorm"
        )
        h = norm(x, f"{at}.pre_feedforward_layernorm")
        gate, up = (h @ weight(f"{at}.mlp.{p}_proj.weight").T for p in ("gate", "up"))
        y = (parts.gelu_tanh(gate) * up) @ weight(f"{at}.mlp.down_proj.weight").T
        x = x + norm(y, f"{at}.post_feedforward_layernorm")
    logits = parts.head(config, weight, norm(x, "model.norm"), tied=True)
    return parts.capped(logits, config.get("final_logit_softcapping", 30.0))


def _sees_window(config: Mapping[str, Any], layer: int) -> bool:
    kinds = config.get("layer_types")
    if kinds:
        return bool(kinds[layer] == "sliding_attention")
    return (layer + 1) % 2 != 0
