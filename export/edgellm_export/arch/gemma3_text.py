"""Gemma 3, text: as Gemma 2 without capped scores; heads are normalised, and the layers that see
a window turn with a rotary base of their own.

Source: Hugging Face modeling_gemma3.py; Gemma Team, arXiv:2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm_export import blocks, fields, mlp
from edgellm_export.blocks import Heads, Rope, Scores
from edgellm_export.data import Stored
from edgellm_export.graph import Graph
from edgellm_export.io import Inputs, asked_rows, output_hidden, output_logits
from edgellm_export.linear import Matrix, embedding, linear
from edgellm_export.rope import frequencies
from edgellm_export.store import WeightStore


@dataclass(frozen=True, slots=True)
class Layer:
    rope: Rope
    scores: Scores
    input_norm: Stored
    qkv: Matrix
    head_norms: tuple[Stored, Stored]
    out: Matrix
    attention_norm: Stored
    mlp_norm: Stored
    gate_up: Matrix
    down: Matrix
    output_norm: Stored


@dataclass(frozen=True, slots=True)
class Gemma3:
    config: Mapping[str, Any]
    embedding: Matrix
    layers: tuple[Layer, ...]
    norm: Stored
    head: Matrix
    cap: float | None
    parameters: int


def store(weights: WeightStore) -> Gemma3:
    config = weights.checkpoint.config
    fields.check(
        config,
        "gemma3_text",
        hidden_activation=("gelu_pytorch_tanh",),
        attention_bias=(False,),
        use_bidirectional_attention=(False,),
        attn_logit_softcapping=(),
    )
    final_cap = fields.cap(config, "final_logit_softcapping", None)
    embedding = weights.outer("embed_tokens", "model.embed_tokens")
    ropes = _ropes(weights)
    layers = tuple(_layer(weights, i, *ropes) for i in range(config["num_hidden_layers"]))
    norm = weights.vector("model.norm.weight", added=1)
    # Hugging Face leaves a key out whose value is its class's default.
    tied = bool(config.get("tie_word_embeddings", True))
    head = embedding if tied else weights.outer("lm_head", "lm_head")
    weights.check_all_used(*(["lm_head.weight"] if tied else []))
    return Gemma3(config, embedding, layers, norm, head, final_cap, weights.parameters)


def _ropes(weights: WeightStore) -> tuple[Rope, Rope]:
    """Tables for the layers that see a window, and for those that see all."""
    config = weights.checkpoint.config
    context = config["max_position_embeddings"]
    base = fields.number(config, "rope_local_base_freq", 10000.0)
    near = frequencies({**config, "rope_theta": base, "rope_scaling": None})
    return (
        blocks.store_rope(weights.data, near, context, "rope.local"),
        blocks.store_rope(weights.data, frequencies(config), context),
    )


def _layer(weights: WeightStore, i: int, local: Rope, distant: Rope) -> Layer:
    c, at, name = weights.checkpoint.config, f"model.layers.{i}", f"layers.{i}"
    near = fields.sees_window(c, i, every=fields.whole(c, "sliding_window_pattern", 6))
    scale = fields.number(c, "query_pre_attn_scalar", 256) ** -0.5
    return Layer(
        local if near else distant,
        Scores(scale, fields.window(c, 4096) if near else None),
        weights.vector(f"{at}.input_layernorm.weight", added=1),
        weights.linear(f"{name}.qkv", *(f"{at}.self_attn.{p}_proj" for p in "qkv")),
        (
            weights.vector(f"{at}.self_attn.q_norm.weight", added=1),
            weights.vector(f"{at}.self_attn.k_norm.weight", added=1),
        ),
        weights.linear(f"{name}.out", f"{at}.self_attn.o_proj"),
        weights.vector(f"{at}.post_attention_layernorm.weight", added=1),
        weights.vector(f"{at}.pre_feedforward_layernorm.weight", added=1),
        weights.linear(f"{name}.gate_up", f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
        weights.linear(f"{name}.down", f"{at}.mlp.down_proj"),
        weights.vector(f"{at}.post_feedforward_layernorm.weight", added=1),
    )


def build(g: Graph, inputs: Inputs, w: Gemma3) -> None:
    c = w.config
    eps = c["rms_norm_eps"]
    heads = Heads(c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
    residual = embedding(g, inputs.ids, w.embedding)  # (B, T, D)
    residual = blocks.scaled(g, residual, fields.embedding_scale(c))
    x = blocks.rms_norm(g, residual, w.layers[0].input_norm, eps)
    norms = [layer.input_norm for layer in w.layers[1:]] + [w.norm]
    for i, (layer, next_norm) in enumerate(zip(w.layers, norms, strict=True)):
        with g.scope(f"layers.{i}"):
            x = linear(g, x, layer.qkv)
            qkv = blocks.head_norms(g, x, heads, layer.head_norms, eps)
            x = blocks.attention(g, qkv, i, heads, layer.rope, inputs.position, layer.scores)
            if layer is w.layers[-1]:
                # Past the last attention only the asked-for rows matter.
                x, residual = asked_rows(g, inputs, x), asked_rows(g, inputs, residual)
            x = blocks.rms_norm(g, linear(g, x, layer.out), layer.attention_norm, eps)
            x, residual = blocks.add_rms_norm(g, x, residual, layer.mlp_norm, eps)
            x = mlp.gated_gelu_mlp(g, x, layer.gate_up, layer.down)
            x = blocks.rms_norm(g, x, layer.output_norm, eps)
            x, residual = blocks.add_rms_norm(g, x, residual, next_norm, eps)
            output_hidden(g, inputs, i, len(w.layers), residual)
    logits = blocks.softcapped(g, linear(g, x, w.head), w.cap)
    output_logits(g, inputs, logits, w.head.shape[0])


def shape(w: Gemma3) -> Shape:
    c = w.config
    return Shape(
        architecture="gemma3_text",
        num_hidden_layers=c["num_hidden_layers"],
        num_attention_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        hidden_size=c["hidden_size"],
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        parameters=w.parameters,
    )
