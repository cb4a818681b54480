"""What a GGUF says about its model, in the words of a Hugging Face config.json.

A further architecture is one more row in ARCHITECTURES.
Sources: docs/gguf.md in ggml for the keys, convert_hf_to_gguf.py in llama.cpp for what was done to
the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.gguf_blocks import load
from edgellm_export.checkpoint.gguf_file import GgufFile
from edgellm_export.checkpoint.mapped import AGAIN, shown
from edgellm_export.weights import to_float32

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """`permuted`: rows of q and k are interleaved for GGML's rotary embedding. `multipliers`:
    factors of the config by GGUF's keys, which must all be there."""

    model_type: str
    class_name: str
    layer: Mapping[str, str]
    permuted: bool = False
    multipliers: Mapping[str, str] = field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _LAYER, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LAYER),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**_LAYER, **_HEAD_NORMS}),
    # Which of its layers have no RoPE is not in the file: every fourth, as llama.cpp has it.
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _LAYER, permuted=True),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        {k: v for k, v in _LAYER.items() if "norm" not in k} | _HEAD_NORMS | _POST_NORMS,
    ),
    "granite": Architecture(
        "granite", "GraniteForCausalLM", _LAYER, permuted=True, multipliers=_GRANITE
    ),
}
ROPE_FACTORS = "rope_freqs.weight"
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,4})\.)?([a-z0-9_]+)\.(weight|bias)")
# What every model with "llama3" rope scaling up to 3.3 uses; the file only has the result.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def architecture(file: GgufFile) -> Architecture:
    """The row for this file; Incompatible lists what there is."""
    name = file.metadata.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise Incompatible(
            f"{file.path} holds architecture {shown(name)}; GGUF is read for "
            f"{', '.join(ARCHITECTURES)}"
        )
    return found


def tensor_names(file: GgufFile, arch: Architecture) -> dict[str, str]:
    """Hugging Face's name to GGUF's, for every tensor; Incompatible names one that has no place."""
    names: dict[str, str] = {}
    for name in file.tensors:
        if name == ROPE_FACTORS:
            continue
        match = _NAME.fullmatch(name)
        layer, part, kind = match.groups() if match else (None, "", "")
        stem = _TOP.get(part) if layer is None else arch.layer.get(part)
        if stem is None:
            raise Incompatible(
                f"{file.path}: tensor {shown(name)} is not part of architecture {arch.model_type}; "
                "this variant cannot be read"
            )
        prefix = "" if layer is None else f"model.layers.{int(layer)}."
        names[f"{prefix}{stem}.{kind}"] = name
    return names


def config(file: GgufFile, arch: Architecture) -> dict[str, Any]:
    """The mapping a config.json would hold, not yet checked."""
    keys = _Keys(file)
    heads, hidden = keys.whole("attention.head_count"), keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", hidden // max(heads, 1))
    context = keys.whole("context_length")
    if keys.whole("expert_count", 0):
        raise Incompatible(f"{file.path} is a mixture of experts, which cannot be read yet")
    for other in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(other, head_dim) != head_dim:
            raise Incompatible(
                f"{file.path}: {keys.prefix}{other} differs from the head width {head_dim}; "
                "this variant cannot be read"
            )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise Corrupt(f"{file.path} has no tensor 'token_embd.weight'; {AGAIN}")
    found = {
        "architectures": [arch.class_name],
        "model_type": arch.model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": keys.decimal("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.decimal("rope.freq_base", 10000.0),
        # The embedding may be padded beyond the tokenizer; its rows are what logits have.
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "dtype": {"F16": "float16", "BF16": "bfloat16"}.get(embedding.kind, "float32"),
    }
    found |= {ours: keys.decimal(theirs) for theirs, ours in arch.multipliers.items()}
    window = keys.whole("attention.sliding_window", 0)
    return (
        found
        | _token_ids(file)
        | ({"rope_scaling": scaling} if (scaling := _rope_scaling(keys, head_dim)) else {})
        | ({"sliding_window": window} if 0 < window < context else {})
    )


class _Keys:
    """Numbers under this architecture's own prefix; Corrupt names the key that is wrong."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.prefix = f"{file.metadata['general.architecture']}."

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.file.metadata.get(self.prefix + key, default)
        if isinstance(value, list):
            raise Incompatible(
                f"{self.file.path}: {self.prefix}{key} differs from layer to layer; "
                "this variant cannot be read"
            )
        if type(value) is not int:
            raise self._wrong(key, value)
        return value

    def decimal(self, key: str, default: float | None = None) -> float:
        """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
        value = self.file.metadata.get(self.prefix + key, default)
        if type(value) is not float:
            raise self._wrong(key, value)
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def _wrong(self, key: str, value: object) -> Corrupt:
        found = "missing" if value is None else f"{shown(value)}, not a number"
        return Corrupt(f"{self.file.path}: metadata {self.prefix}{key} is {found}; {AGAIN}")


def _token_ids(file: GgufFile) -> dict[str, int]:
    found = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if value is not None:
            found[f"{ours}_token_id"] = value
    return found


def _rope_scaling(keys: _Keys, head_dim: int) -> dict[str, Any]:
    file = keys.file
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(keys, head_dim)
    kind = file.metadata.get(f"{keys.prefix}rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": keys.decimal("rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": keys.decimal("rope.scaling.factor"),
            "original_max_position_embeddings": keys.whole("rope.scaling.original_context_length"),
        }
    raise Incompatible(f"{file.path} uses rope scaling {shown(kind)}, which cannot be read")


def _llama3_scaling(keys: _Keys, head_dim: int) -> dict[str, Any]:
    """The settings behind a table of factors, proven by computing the table again."""
    file = keys.file
    table = to_float32(load(file, file.tensors[ROPE_FACTORS])).astype(np.float64)
    scaling = {"rope_type": "llama3", "factor": float(table.max(initial=1.0)), **_LLAMA3}
    base = keys.decimal("rope.freq_base", 10000.0)
    # The width comes from the file: nothing of that size is made before it agrees with the table.
    with np.errstate(all="ignore"):
        right = 2 * table.size == head_dim and np.allclose(
            table, llama3_factors(scaling, base, head_dim), rtol=1e-4
        )
    if not right:
        raise Incompatible(
            f"{file.path}: {ROPE_FACTORS} is not the table of Llama 3; this variant cannot be read"
        )
    return scaling


def llama3_factors(scaling: Mapping[str, Any], base: float, head_dim: int) -> NDArray[np.float64]:
    """What each of head_dim / 2 rotary wavelengths is multiplied by.

    Source: _compute_llama3_parameters in transformers' modeling_rope_utils.py.
    """
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: NDArray[np.float64] = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return factors
