"""Qwen3, dense: Llama with a norm on every query and key head, before they are turned.

Source: Hugging Face modeling_qwen3.py; arXiv:2505.09388, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm.errors import Incompatible
from edgellm_export import blocks, mlp
from edgellm_export.blocks import Heads, Rope
from edgellm_export.data import Stored
from edgellm_export.graph import Graph, Value
from edgellm_export.io import Inputs, output_hidden, output_logits
from edgellm_export.linear import Matrix, embedding, linear
from edgellm_export.rope import frequencies
from edgellm_export.store import WeightStore


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm: Stored
    qkv: Matrix
    head_norms: tuple[Stored, Stored]
    out: Matrix
    mlp_norm: Stored
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class Qwen3:
    config: Mapping[str, Any]
    embedding: Matrix
    layers: tuple[Layer, ...]
    norm: Stored
    head: Matrix
    rope: Rope
    parameters: int

    @property
    def heads(self) -> Heads:
        c = self.config
        return Heads(c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])


def store(weights: WeightStore) -> Qwen3:
    config = weights.checkpoint.config
    _refuse(config)
    embedding = weights.outer("embed_tokens", "model.embed_tokens")
    layers = tuple(_layer(weights, i) for i in range(config["num_hidden_layers"]))
    norm = weights.vector("model.norm.weight")
    tied = bool(config.get("tie_word_embeddings"))
    head = embedding if tied else weights.outer("lm_head", "lm_head")
    weights.check_all_used(*(["lm_head.weight"] if tied else []))
    rope = blocks.store_rope(weights.data, frequencies(config), config["max_position_embeddings"])
    return Qwen3(config, embedding, layers, norm, head, rope, weights.parameters)


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
        weights.linear(f"{name}.gate_up", f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
        weights.linear(f"{name}.down", f"{at}.mlp.down_proj"),
    )


def _refuse(config: Mapping[str, Any]) -> None:
    for key, allowed in (
        ("hidden_act", ("silu", None)),
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
        # Without it a sliding_window is only a number that nobody reads.
        ("use_sliding_window", (False, None)),
    ):
        if config.get(key) not in allowed:
            raise Incompatible(f"config.json: {key} is {config[key]!r}; the qwen3 builder has none")


def build(g: Graph, inputs: Inputs, w: Qwen3) -> None:
    eps, heads = w.config["rms_norm_eps"], w.heads
    residual = embedding(g, inputs.ids, w.embedding)  # (B, T, D)
    x = blocks.rms_norm(g, residual, w.layers[0].input_norm, eps)
    norms = [layer.input_norm for layer in w.layers[1:]] + [w.norm]
    for i, (layer, next_norm) in enumerate(zip(w.layers, norms, strict=True)):
        with g.scope(f"layers.{i}"):
            qkv = linear(g, x, layer.qkv)
            apart = blocks.head_norms(g, qkv, heads, layer.head_norms, eps)
            x = blocks.attention(g, apart, i, heads, w.rope, inputs.position)
            if layer is w.layers[-1] and inputs.rows is not None:
                # Past the last attention only the asked-for rows matter.
                x, residual = _rows(g, x, inputs), _rows(g, residual, inputs)
            x = linear(g, x, layer.out)
            x, residual = blocks.add_rms_norm(g, x, residual, layer.mlp_norm, eps)
            x = mlp.gated_mlp(g, x, layer.gate_up, layer.down)
            x, residual = blocks.add_rms_norm(g, x, residual, next_norm, eps)
            output_hidden(g, inputs, i, len(w.layers), residual)
    output_logits(g, inputs, linear(g, x, w.head), w.head.shape[0])


def _rows(g: Graph, stream: Value, inputs: Inputs) -> Value:
    """(1, T, …) to (1, R, …)"""
    return g.op("Gather", stream, inputs.rows, axis=1)


def shape(w: Qwen3) -> Shape:
    c = w.config
    return Shape(
        architecture="qwen3",
        num_hidden_layers=c["num_hidden_layers"],
        num_attention_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        hidden_size=c["hidden_size"],
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        parameters=w.parameters,
    )
