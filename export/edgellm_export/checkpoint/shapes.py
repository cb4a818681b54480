"""Do the tensors have the sizes that the config promises? Asked once, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgellm.errors import Corrupt
from edgellm_export.checkpoint.mapped import AGAIN, shown

_NAME = re.compile(r"(?:model\.layers\.([0-9]{1,5})\.)?(\w+(?:\.\w+)*)\.(weight|bias)", re.ASCII)


# Architectures whose norms of query and key are over all heads at once.
_WIDE_NORMS = ("olmo2",)


def check_shapes(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Corrupt names the first tensor that contradicts the config; unknown names pass.

    The names are those of decoders in the manner of Llama; an architecture that uses them with
    other sizes needs a row of its own.
    """
    expected = _expected(config)
    for name, shape in shapes.items():
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        layer, stem, kind = match.groups()
        if layer is not None and int(layer) >= config["num_hidden_layers"]:
            raise Corrupt(
                f"{where}: tensor {shown(name)} is beyond the {config['num_hidden_layers']} layers "
                f"that its config promises; {AGAIN}"
            )
        right = expected.get(("layer." if layer is not None else "") + stem)
        if right is not None and shape != (right if kind == "weight" else right[:1]):
            raise Corrupt(
                f"{where}: tensor {shown(name)} has shape {shown(shape)} and its config promises "
                f"{right if kind == 'weight' else right[:1]}; {AGAIN}"
            )


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return _decoder(config) | _experts(config)


def _decoder(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    wide = config["model_type"] in _WIDE_NORMS
    return {
        "model.embed_tokens": (config["vocab_size"], hidden),
        "model.norm": (hidden,),
        "lm_head": (config["vocab_size"], hidden),
        "layer.input_layernorm": (hidden,),
        "layer.post_attention_layernorm": (hidden,),
        "layer.pre_feedforward_layernorm": (hidden,),
        "layer.post_feedforward_layernorm": (hidden,),
        "layer.self_attn.qkv_proj": (query + 2 * key, hidden),
        "layer.self_attn.q_proj": (query, hidden),
        "layer.self_attn.k_proj": (key, hidden),
        "layer.self_attn.v_proj": (key, hidden),
        "layer.self_attn.o_proj": (hidden, query),
        "layer.self_attn.q_norm": (query if wide else head,),
        "layer.self_attn.k_norm": (key if wide else head,),
        "layer.mlp.gate_proj": (inner, hidden),
        "layer.mlp.up_proj": (inner, hidden),
        "layer.mlp.gate_up_proj": (2 * inner, hidden),
        "layer.mlp.down_proj": (hidden, inner),
    }


def _experts(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    count = config.get("num_experts", config.get("num_local_experts"))
    inner = config.get("moe_intermediate_size")
    if not (type(count) is int and 0 < count <= 1 << 12 and type(inner) is int):
        return {}
    hidden = config["hidden_size"]
    found: dict[str, tuple[int, ...]] = {"layer.mlp.gate": (count, hidden)}
    for i in range(count):
        at = f"layer.mlp.experts.{i}"
        found |= {f"{at}.gate_proj": (inner, hidden), f"{at}.up_proj": (inner, hidden)}
        found[f"{at}.down_proj"] = (hidden, inner)
    return found
