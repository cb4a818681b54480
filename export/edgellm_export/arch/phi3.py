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
from edgellm_export.io import Inputs, asked_rows, output_hidden, output_logits
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
    context: int
    embedding: Matrix
    layers: tuple[Layer, ...]
    norm: Stored
    head: Matrix
    rope: Rope
    parameters: int


def store(weights: WeightStore) -> Phi3:
    config = weights.checkpoint.config
    _refuse(config)
    context = _context(config, weights.checkpoint.notices)
    embedding = weights.outer("embed_tokens", "model.embed_tokens")
    layers = tuple(_layer(weights, i) for i in range(config["num_hidden_layers"]))
    norm = weights.vector("model.norm.weight")
    tied = bool(config.get("tie_word_embeddings"))
    head = embedding if tied else weights.outer("lm_head", "lm_head")
    weights.check_all_used(*(["lm_head.weight"] if tied else []))
    rope = _rope(weights.data, config, context)
    return Phi3(config, context, embedding, layers, norm, head, rope, weights.parameters)


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


def _context(config: Mapping[str, Any], notices: list[str]) -> int:
    """Positions for which one rotary table is right.

    Long-rope has two sets of frequencies and takes the long ones for every position as soon as the
    text leaves the original window: what is cached by then would have to be computed again, so the
    graph stays inside the window, with the short ones.
    """
    longest: int = config["max_position_embeddings"]
    if not config.get("rope_scaling"):
        return longest
    context = min(longest, _original(config))
    if context < longest:
        notices.append(
            f"the context is {context} tokens of {longest}: beyond that long-rope changes the "
            "frequencies of all positions, cached ones too"
        )
    return context


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


def _rope(data: DataFile, config: Mapping[str, Any], context: int) -> Rope:
    width, scaling = _rotary_width(config), config.get("rope_scaling")
    plain = frequencies({**config, "head_dim": width, "rope_scaling": None})
    if not scaling:
        return blocks.store_rope(data, plain, context)
    slowed = plain / _short_factors(scaling, len(plain))
    stretch = config["max_position_embeddings"] / _original(config)
    factor = scaling.get("attention_factor")
    if factor is None:
        stretch = scaling.get("factor") or stretch
        grown = 1 + math.log(stretch) / math.log(_original(config)) if stretch > 1 else 1
        factor = math.sqrt(grown)
    return blocks.store_rope(data, slowed, context, factor=factor)


def _short_factors(scaling: Mapping[str, Any], count: int) -> NDArray[np.float64]:
    factors = scaling.get("short_factor")
    numbers = factors if isinstance(factors, list) else []
    if len(numbers) != count or not all(type(one) in (int, float) for one in numbers):
        raise Corrupt(
            f"config.json: rope_scaling short_factor must be {count} numbers, it has "
            f"{len(numbers)}; download it again"
        )
    return np.array(numbers, np.float64)


def build(g: Graph, inputs: Inputs, w: Phi3) -> None:
    c = w.config
    eps = c["rms_norm_eps"]
    heads = Heads(c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
    scores = Scores(window=fields.window(c))
    residual = embedding(g, inputs.ids, w.embedding)  # (B, T, D)
    x = blocks.rms_norm(g, residual, w.layers[0].input_norm, eps)
    norms = [layer.input_norm for layer in w.layers[1:]] + [w.norm]
    for i, (layer, next_norm) in enumerate(zip(w.layers, norms, strict=True)):
        with g.scope(f"layers.{i}"):
            x = linear(g, x, layer.qkv)
            x = blocks.attention(g, x, i, heads, w.rope, inputs.position, scores)
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
        context_length=w.context,
        parameters=w.parameters,
    )
