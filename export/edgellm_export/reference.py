"""A forward pass in plain numpy, written from the papers and not from the graph builder.

It shares no code with blocks.py or arch/: the self-check compares the two. No cache, no packing,
no chunks: all tokens at once, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgellm_export.rope import frequencies
from edgellm_export.weights import Float32


def llama(
    config: Mapping[str, Any], weight: Callable[[str], Float32], ids: Sequence[int]
) -> Float32:
    """Logits (T, V) of a model with model_type "llama" after each of `ids`."""
    angles = np.outer(np.arange(len(ids)), frequencies(config))  # (T, N / 2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    eps = config["rms_norm_eps"]
    table = weight("model.embed_tokens.weight")  # (V, D)
    x = table[np.asarray(ids)]  # (T, D)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = _rms_norm(x, weight(f"{at}.input_layernorm.weight"), eps)
        x = x + _attention(config, weight, f"{at}.self_attn", h, cos, sin)
        h = _rms_norm(x, weight(f"{at}.post_attention_layernorm.weight"), eps)
        gate = h @ weight(f"{at}.mlp.gate_proj.weight").T
        up = h @ weight(f"{at}.mlp.up_proj.weight").T
        x = x + (_silu(gate) * up) @ weight(f"{at}.mlp.down_proj.weight").T
    x = _rms_norm(x, weight("model.norm.weight"), eps)
    head = table if config.get("tie_word_embeddings") else weight("lm_head.weight")
    logits: Float32 = x @ head.T
    return logits


def _attention(
    config: Mapping[str, Any],
    weight: Callable[[str], Float32],
    at: str,
    h: Float32,
    cos: Float32,
    sin: Float32,
) -> Float32:
    t, n = len(h), config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    q = _rotate((h @ weight(f"{at}.q_proj.weight").T).reshape(t, heads, n), cos, sin)
    k = _rotate((h @ weight(f"{at}.k_proj.weight").T).reshape(t, kv_heads, n), cos, sin)
    v = (h @ weight(f"{at}.v_proj.weight").T).reshape(t, kv_heads, n)
    k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
    scores = np.einsum("qhn,khn->hqk", q, k) / np.sqrt(np.float32(n))
    scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khn->qhn", scores, v).reshape(t, -1)
    out: Float32 = mixed @ weight(f"{at}.o_proj.weight").T
    return out


def _rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """The two halves of each head turned against each other: x (T, heads, N)."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _silu(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and 1 / inf is right
        activated: Float32 = x / (1 + np.exp(-x))
    return activated


def _rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    normalised: Float32 = (
        x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    )
    return normalised


FORWARD = {"llama": llama}


def forward(
    config: Mapping[str, Any], weight: Callable[[str], Float32], ids: Sequence[int]
) -> Float32:
    """Logits (T, V) after each of `ids`, by the architecture the config names."""
    return FORWARD[config["model_type"]](config, weight, ids)
