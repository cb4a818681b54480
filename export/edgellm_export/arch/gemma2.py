"""Gemma 2: norms of 1 + weight, four a layer, every second layer sees a window, capped scores.

Source: Hugging Face modeling_gemma2.py; Gemma Team, arXiv:2408.00118.
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
    scores: Scores
    input_norm: Stored
    qkv: Matrix
    out: Matrix
    attention_norm: Stored
    mlp_norm: Stored
    gate_up: Matrix
    down: Matrix
    output_norm: Stored


@dataclass(frozen=True, slots=True)
class Gemma2:
    config: Mapping[str, Any]
    embedding: Matrix
    layers: tuple[Layer, ...]
    norm: Stored
    head: Matrix
    cap: float | None
    rope: Rope
    parameters: int


def store(weights: WeightStore) -> Gemma2:
    config = weights.checkpoint.config
    fields.check(
        config,
        "gemma2",
        hidden_activation=("gelu_pytorch_tanh",),
        attention_bias=(False,),
        use_bidirectional_attention=(False,),
    )
    final_cap = fields.cap(config, "final_logit_softcapping", 30.0)
    embedding = weights.outer("embed_tokens", "model.embed_tokens")
    layers = tuple(_layer(weights, i) for i in range(config["num_hidden_layers"]))
    norm = weights.vector("model.norm.weight", added=1)
    # Hugging Face leaves a key out whose value is its class's default.
    tied = bool(config.get("tie_word_embeddings", True))
    head = embedding if tied else weights.outer("lm_head", "lm_head")
    weights.check_all_used(*(["lm_head.weight"] if tied else []))
    rope = blocks.store_rope(weights.data, frequencies(config), config["max_position_embeddings"])
    return Gemma2(config, embedding, layers, norm, head, final_cap, rope, weights.parameters)


def _layer(weights: WeightStore, i: int) -> Layer:
    c, at, name = weights.checkpoint.config, f"model.layers.{i}", f"layers.{i}"
    scores = Scores(
        fields.number(c, "query_pre_attn_scalar", 256) ** -0.5,
        fields.window(c, 4096) if fields.sees_window(c, i, every=2) else None,
        fields.cap(c, "attn_logit_softcapping", 50.0),
    )
    return Layer(
        scores,
        weights.vector(f"{at}.input_layernorm.weight", added=1),
        weights.linear(f"{name}.qkv", *(f"{at}.self_attn.{p}_proj" for p in "qkv")),
        weights.linear(f"{name}.out", f"{at}.self_attn.o_proj"),
        weights.vector(f"{at}.post_attention_layernorm.weight", added=1),
        weights.vector(f"{at}.pre_feedforward_layernorm.weight", added=1),
        weights.linear(f"{name}.gate_up", f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
        weights.linear(f"{name}.down", f"{at}.mlp.down_proj"),
        weights.vector(f"{at}.post_feedforward_layernorm.weight", added=1),
    )


def build(g: Graph, inputs: Inputs, w: Gemma2) -> None:
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
            x = blocks.attention(g, x, i, heads, w.rope, inputs.position, layer.scores)
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


def shape(w: Gemma2) -> Shape:
    c = w.config
    return Shape(
        architecture="gemma2",
        num_hidden_layers=c["num_hidden_layers"],
        num_attention_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        hidden_size=c["hidden_size"],
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        parameters=w.parameters,
    )
