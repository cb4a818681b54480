"""Qwen3-MoE: heads normalised one by one, and for each token some of many small MLPs.

Source: Hugging Face modeling_qwen3_moe.py; Qwen Team, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm.errors import Corrupt
from edgellm_export import blocks, fields
from edgellm_export.blocks import Heads, Rope, Scores
from edgellm_export.data import Stored
from edgellm_export.experts import Experts, mixture
from edgellm_export.graph import Graph, Value
from edgellm_export.io import Inputs, asked_rows, output_hidden, output_logits
from edgellm_export.linear import Matrix, embedding, linear
from edgellm_export.mlp import gated_mlp
from edgellm_export.rope import frequencies
from edgellm_export.store import WeightStore


@dataclass(frozen=True, slots=True)
class Dense:
    """The one MLP of a layer without experts."""

    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm: Stored
    qkv: Matrix
    head_norms: tuple[Stored, Stored]
    out: Matrix
    mlp_norm: Stored
    mlp: Dense | Experts


@dataclass(frozen=True, slots=True)
class Qwen3Moe:
    config: Mapping[str, Any]
    embedding: Matrix
    layers: tuple[Layer, ...]
    norm: Stored
    head: Matrix
    rope: Rope
    scores: Scores
    parameters: int


def store(weights: WeightStore) -> Qwen3Moe:
    config = weights.checkpoint.config
    fields.check(config, "qwen3_moe", hidden_act=("silu",), attention_bias=(False,))
    scores = Scores(window=fields.window(config) if config.get("use_sliding_window") else None)
    embedding = weights.outer("embed_tokens", "model.embed_tokens")
    layers = tuple(_layer(weights, i) for i in range(config["num_hidden_layers"]))
    norm = weights.vector("model.norm.weight")
    tied = bool(config.get("tie_word_embeddings"))
    head = embedding if tied else weights.outer("lm_head", "lm_head")
    weights.check_all_used(*(["lm_head.weight"] if tied else []))
    rope = blocks.store_rope(weights.data, frequencies(config), config["max_position_embeddings"])
    return Qwen3Moe(config, embedding, layers, norm, head, rope, scores, weights.parameters)


def _layer(weights: WeightStore, i: int) -> Layer:
    at, name = f"model.layers.{i}", f"layers.{i}"
    return Layer(
        weights.vector(f"{at}.input_layernorm.weight"),
        weights.linear(f"{name}.qkv", *(f"{at}.self_attn.{p}_proj" for p in "qkv")),
        (
            weights.vector(f"{at}.self_attn.q_norm.weight"),
            weights.vector(f"{at}.self_attn.k_norm.weight"),
        ),
        weights.linear(f"{name}.out", f"{at}.self_attn.o_proj"),
        weights.vector(f"{at}.post_attention_layernorm.weight"),
        _mlp(weights, i, f"{at}.mlp", name),
    )


def _mlp(weights: WeightStore, i: int, at: str, name: str) -> Dense | Experts:
    config = weights.checkpoint.config
    every = fields.whole(config, "decoder_sparse_step", 1)
    if i in (config.get("mlp_only_layers") or ()) or (i + 1) % every:
        return Dense(
            weights.linear(f"{name}.gate_up", f"{at}.gate_proj", f"{at}.up_proj"),
            weights.linear(f"{name}.down", f"{at}.down_proj"),
        )
    count, chosen = fields.expert_count(config), fields.whole(config, "num_experts_per_tok")
    if chosen > count:
        raise Corrupt(f"config.json: num_experts_per_tok is {chosen}, there are {count} experts")
    experts = [f"{at}.experts.{e}" for e in range(count)]
    return Experts(
        weights.exact(f"{name}.router", f"{at}.gate"),
        weights.experts(
            f"{name}.experts.gate_up", [(f"{e}.gate_proj", f"{e}.up_proj") for e in experts]
        ),
        weights.experts(f"{name}.experts.down", [(f"{e}.down_proj",) for e in experts]),
        chosen,
        bool(config.get("norm_topk_prob")),
    )


def build(g: Graph, inputs: Inputs, w: Qwen3Moe) -> None:
    c = w.config
    eps = c["rms_norm_eps"]
    heads = Heads(c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
    residual = embedding(g, inputs.ids, w.embedding)  # (B, T, D)
    x = blocks.rms_norm(g, residual, w.layers[0].input_norm, eps)
    norms = [layer.input_norm for layer in w.layers[1:]] + [w.norm]
    for i, (layer, next_norm) in enumerate(zip(w.layers, norms, strict=True)):
        with g.scope(f"layers.{i}"):
            x = linear(g, x, layer.qkv)
            qkv = blocks.head_norms(g, x, heads, layer.head_norms, eps)
            x = blocks.attention(g, qkv, i, heads, w.rope, inputs.position, w.scores)
            if layer is w.layers[-1]:
                # Past the last attention only the asked-for rows matter.
                x, residual = asked_rows(g, inputs, x), asked_rows(g, inputs, residual)
            x = linear(g, x, layer.out)
            x, residual = blocks.add_rms_norm(g, x, residual, layer.mlp_norm, eps)
            x = _build_mlp(g, x, layer.mlp)
            x, residual = blocks.add_rms_norm(g, x, residual, next_norm, eps)
            output_hidden(g, inputs, i, len(w.layers), residual)
    output_logits(g, inputs, linear(g, x, w.head), w.head.shape[0])


def _build_mlp(g: Graph, x: Value, mlp: Dense | Experts) -> Value:
    if isinstance(mlp, Experts):
        return mixture(g, x, mlp)
    return gated_mlp(g, x, mlp.gate_up, mlp.down)


def shape(w: Qwen3Moe) -> Shape:
    c = w.config
    return Shape(
        architecture="qwen3_moe",
        num_hidden_layers=c["num_hidden_layers"],
        num_attention_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        hidden_size=c["hidden_size"],
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        parameters=w.parameters,
    )
