"""Phi-3 and Phi-4-mini: projections fused in the checkpoint, rotary on part of a head, long-rope.

Source: Hugging Face modeling_phi3.py, configuration_phi3.py; long-rope: Ding et al.,
arXiv:2402.13753, and `_compute_longrope_parameters` in modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle.manifest import Shape
from edgellm.errors import Corrupt, Incompatible
from edgellm_export import blocks, fields, mlp
from edgellm_export.blocks import Heads, Rope, Scores
from edgellm_export.data import DataFile, Stored
from edgellm_export.graph import Graph
from edgellm_export.io import Inputs, asked_rows, output_hidden, output_logits, switched
from edgellm_export.linear import Matrix, embedding, linear
from edgellm_export.rope import frequencies
from edgellm_export.store import WeightStore


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm: Stored
    qkv: Matrix
    out: Matrix
    mlp_norm: Stored
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class Phi3:
    config: Mapping[str, Any]
    switch: int | None
    embedding: Matrix
    layers: tuple[Layer, ...]
    norm: Stored
    head: Matrix
    rope: Rope
    parameters: int


def store(weights: WeightStore) -> Phi3:
    config = weights.checkpoint.config
    _refuse(config)
    switch = _switch(config)
    embedding = weights.outer("embed_tokens", "model.embed_tokens")
    layers = tuple(_layer(weights, i) for i in range(config["num_hidden_layers"]))
    norm = weights.vector("model.norm.weight")
    tied = bool(config.get("tie_word_embeddings"))
    head = embedding if tied else weights.outer("lm_head", "lm_head")
    weights.check_all_used(*(["lm_head.weight"] if tied else []))
    rope = _rope(weights.data, config, switch)
    return Phi3(config, switch, embedding, layers, norm, head, rope, weights.parameters)


def _layer(weights: WeightStore, i: int) -> Layer:
    at, name = f"model.layers.{i}", f"layers.{i}"
    return Layer(
        weights.vector(f"{at}.input_layernorm.weight"),
        weights.linear(f"{name}.qkv", f"{at}.self_attn.qkv_proj"),
        weights.linear(f"{name}.out", f"{at}.self_attn.o_proj"),
        weights.vector(f"{at}.post_attention_layernorm.weight"),
        weights.linear(f"{name}.gate_up", f"{at}.mlp.gate_up_proj"),
        weights.linear(f"{name}.down", f"{at}.mlp.down_proj"),
    )


def _refuse(config: Mapping[str, Any]) -> None:
    fields.check(config, "phi3", hidden_act=("silu",), attention_bias=(False,))
    scaling = config.get("rope_scaling")
    # Phi-3's first configs say "su" or "yarn" and mean what is now called "longrope".
    if scaling and scaling["rope_type"] not in ("longrope", "su", "yarn"):
        raise Incompatible(
            f"config.json: rope_scaling is {scaling['rope_type']!r}; the phi3 builder has longrope"
        )


def _switch(config: Mapping[str, Any]) -> int | None:
    """Positions after which long-rope takes its long factors; None where it never does."""
    if not config.get("rope_scaling"):
        return None
    original = _original(config)
    return original if original < config["max_position_embeddings"] else None


def _original(config: Mapping[str, Any]) -> int:
    scaling = config["rope_scaling"]
    key = "original_max_position_embeddings"
    default = 4096  # of Hugging Face's Phi3Config
    return max(2, fields.whole({key: config.get(key) or scaling.get(key) or default}, key))


def _rotary_width(config: Mapping[str, Any]) -> int:
    part = config.get("partial_rotary_factor", 1.0)
    width = int(config["head_dim"] * part) if type(part) in (int, float) and 0 < part <= 1 else 0
    if width < 2 or width % 2:
        raise Incompatible(
            f"config.json: partial_rotary_factor is {part!r}; it must turn an even part of a head"
        )
    return width


def _rope(data: DataFile, config: Mapping[str, Any], switch: int | None) -> Rope:
    """One table, or that of the short factors with that of the long ones below."""
    width, scaling = _rotary_width(config), config.get("rope_scaling")
    plain = frequencies({**config, "head_dim": width, "rope_scaling": None})
    context: int = config["max_position_embeddings"]
    if not scaling:
        return blocks.store_rope(data, plain, context)
    stretch = context / _original(config)
    factor = scaling.get("attention_factor")
    if factor is None:
        stretch = scaling.get("factor") or stretch
        grown = 1 + math.log(stretch) / math.log(_original(config)) if stretch > 1 else 1
        factor = math.sqrt(grown)
    short = plain / _factors(scaling, "short_factor", len(plain))
    if switch is None:
        return blocks.store_rope(data, short, context, factor=factor)
    long = plain / _factors(scaling, "long_factor", len(plain))
    return blocks.joined_ropes(data, [(short, switch), (long, context)], factor)


def _factors(scaling: Mapping[str, Any], key: str, count: int) -> NDArray[np.float64]:
    factors = scaling.get(key)
    numbers = factors if isinstance(factors, list) else []
    if len(numbers) != count or not all(type(one) in (int, float) for one in numbers):
        raise Corrupt(
            f"config.json: rope_scaling {key} must be {count} numbers, it has {len(numbers)}; "
            "download it again"
        )
    return np.array(numbers, np.float64)


def build(g: Graph, inputs: Inputs, w: Phi3) -> None:
    c = w.config
    eps = c["rms_norm_eps"]
    heads = Heads(c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
    scores = Scores(window=fields.window(c))
    position = inputs.position if w.switch is None else switched(g, inputs, w.switch)
    residual = embedding(g, inputs.ids, w.embedding)  # (B, T, D)
    x = blocks.rms_norm(g, residual, w.layers[0].input_norm, eps)
    norms = [layer.input_norm for layer in w.layers[1:]] + [w.norm]
    for i, (layer, next_norm) in enumerate(zip(w.layers, norms, strict=True)):
        with g.scope(f"layers.{i}"):
            x = linear(g, x, layer.qkv)
            x = blocks.attention(g, x, i, heads, w.rope, position, scores)
            if layer is w.layers[-1]:
                # Past the last attention only the asked-for rows matter.
                x, residual = asked_rows(g, inputs, x), asked_rows(g, inputs, residual)
            x = linear(g, x, layer.out)
            x, residual = blocks.add_rms_norm(g, x, residual, layer.mlp_norm, eps)
            x = mlp.gated_mlp(g, x, layer.gate_up, layer.down)
            x, residual = blocks.add_rms_norm(g, x, residual, next_norm, eps)
            output_hidden(g, inputs, i, len(w.layers), residual)
    output_logits(g, inputs, linear(g, x, w.head), w.head.shape[0])


def shape(w: Phi3) -> Shape:
    c = w.config
    return Shape(
        architecture="phi3",
        num_hidden_layers=c["num_hidden_layers"],
        num_attention_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        hidden_size=c["hidden_size"],
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        parameters=w.parameters,
        rope_switch=w.switch,
    )
