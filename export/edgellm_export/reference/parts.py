"""What the forward passes have in common. Shapes: T tokens, H heads of width N, K kv heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm_export.rope import frequencies
from edgellm_export.weights import Float32

# The values of a tensor by its name in the checkpoint.
Weight = Callable[[str], Float32]


def cos_sin(config: Mapping[str, Any], tokens: int) -> tuple[Float32, Float32]:
    """Rotary tables (T, N / 2)."""
    return tables(frequencies(config), tokens)


def tables(turns: NDArray[np.float64], tokens: int) -> tuple[Float32, Float32]:
    """cos and sin for frequencies (R / 2,) in radians a position: (T, R / 2) each."""
    angles = np.outer(np.arange(tokens), turns)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def heads(x: Float32, width: int) -> Float32:
    """(T, H * N) to (T, H, N)."""
    return x.reshape(len(x), -1, width)


def rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """The two halves of the first R numbers of each head turned against each other: x (T, H, N),
    cos and sin (T, R / 2)."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def attend(
    q: Float32,
    k: Float32,
    v: Float32,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> Float32:
    """Causal attention of q (T, H, N) over k and v (T, K, N): (T, H * N).

    A token sees `window` tokens, itself included. `scale` None: 1 / sqrt(N).
    """
    t, n = len(q), q.shape[-1]
    k, v = (np.repeat(part, q.shape[1] // part.shape[1], axis=1) for part in (k, v))
    scores = np.einsum("qhn,khn->hqk", q, k) * np.float32(n**-0.5 if scale is None else scale)
    scores = capped(scores, cap)
    seen = np.tri(t, dtype=bool)
    if window is not None:
        seen &= ~np.tri(t, k=-window, dtype=bool)
    chances = softmax(np.where(seen, scores, -np.inf))
    mixed: Float32 = np.einsum("hqk,khn->qhn", chances, v).reshape(t, -1)
    return mixed


def capped(x: Float32, cap: float | None) -> Float32:
    """cap * tanh(x / cap)"""
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def softmax(x: Float32) -> Float32:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    normalised: Float32 = powers / powers.sum(axis=-1, keepdims=True)
    return normalised


def gated_mlp(weight: Weight, at: str, h: Float32) -> Float32:
    """down(silu(gate(h)) * up(h))"""
    gate, up = (h @ weight(f"{at}.{part}_proj.weight").T for part in ("gate", "up"))
    out: Float32 = (silu(gate) * up) @ weight(f"{at}.down_proj.weight").T
    return out


def silu(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and 1 / inf is right
        activated: Float32 = x / (1 + np.exp(-x))
    return activated


def gelu_tanh(x: Float32) -> Float32:
    """Hendrycks and Gimpel, arXiv:1606.08415, the approximation with tanh."""
    bent = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    activated: Float32 = np.float32(0.5) * x * (1 + np.tanh(bent))
    return activated


def rounded_root(config: Mapping[str, Any]) -> np.float32:
    """sqrt(D) with no more bits than the model's own type has."""
    mantissa, exponent = np.frexp(np.sqrt(config["hidden_size"]))
    bits = {"bfloat16": 8, "float16": 11}.get(str(config.get("dtype")), 24)
    return np.float32(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits))


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    normalised: Float32 = (
        x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    )
    return normalised


def head(config: Mapping[str, Any], weight: Weight, x: Float32, tied: bool = False) -> Float32:
    """Logits (T, V); `tied` is what a config means that does not say it."""
    if config.get("tie_word_embeddings", tied):
        return x @ weight("model.embed_tokens.weight").T
    return x @ weight("lm_head.weight").T
