"""What a GGUF says about its model, in the words of a Hugging Face config.json.

Source: docs/gguf.md in ggml for the keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.gguf_architectures import ARCHITECTURES, Architecture
from edgellm_export.checkpoint.gguf_blocks import load
from edgellm_export.checkpoint.gguf_file import GgufFile, Tensor
from edgellm_export.checkpoint.gguf_keys import Keys
from edgellm_export.checkpoint.mapped import AGAIN, shown
from edgellm_export.weights import to_float32

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROPE_FACTORS = "rope_freqs.weight"
ROPE_TABLES = (ROPE_FACTORS, "rope_factors_short.weight", "rope_factors_long.weight")
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


def tensors(file: GgufFile, arch: Architecture) -> dict[str, Tensor]:
    """Every tensor by Hugging Face's name; Incompatible names one that has no place."""
    found: dict[str, Tensor] = {}
    for name, tensor in file.tensors.items():
        if name in ROPE_TABLES:
            continue
        match = _NAME.fullmatch(name)
        layer, part, kind = match.groups() if match else (None, "", "")
        if layer is not None and part in arch.experts and kind == "weight":
            for i, one in enumerate(_experts(file, tensor)):
                at = f"model.layers.{int(layer)}.mlp.experts.{i}"
                found[f"{at}.{arch.experts[part]}.weight"] = one
            continue
        stem = _TOP.get(part) if layer is None else arch.layer.get(part)
        if stem is None:
            raise Incompatible(
                f"{file.path}: tensor {shown(name)} is not part of architecture {arch.model_type}; "
                "this variant cannot be read"
            )
        prefix = "" if layer is None else f"model.layers.{int(layer)}."
        found[f"{prefix}{stem}.{kind}"] = tensor
    return found


def _experts(file: GgufFile, tensor: Tensor) -> list[Tensor]:
    """The matrix of each expert inside the one tensor (E, N, K) that has them all."""
    count = Keys(file).whole("expert_count")
    if len(tensor.shape) != 3 or tensor.shape[0] != count:
        raise Corrupt(
            f"{file.path}: tensor {shown(tensor.name)} has shape {tensor.shape} and the file "
            f"promises {count} experts; {AGAIN}"
        )
    size = tensor.size_bytes // count
    return [
        Tensor(f"{tensor.name}[{i}]", tensor.kind, tensor.shape[1:], tensor.offset + i * size, size)
        for i in range(count)
    ]


def config(file: GgufFile, arch: Architecture) -> dict[str, Any]:
    """The mapping a config.json would hold, not yet checked."""
    keys = Keys(file)
    heads, hidden = keys.whole("attention.head_count"), keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", hidden // max(heads, 1))
    context = keys.whole("context_length")
    _refuse(keys, arch, head_dim)
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
        | arch.also(keys, found)
    )


def _refuse(keys: Keys, arch: Architecture, head_dim: int) -> None:
    """Incompatible says what no builder of this architecture has."""
    if keys.whole("expert_count", 0) and not arch.experts:
        raise Incompatible(
            f"{keys.file.path} is a mixture of experts, which is read for qwen3moe only; "
            "export from the model's Hugging Face folder instead"
        )
    for other in ("attention.value_length", "rope.dimension_count"):
        if other not in arch.parts_of_heads and keys.whole(other, head_dim) != head_dim:
            raise Incompatible(
                f"{keys.file.path}: {keys.prefix}{other} differs from the head width {head_dim}; "
                "this variant cannot be read"
            )


def _token_ids(file: GgufFile) -> dict[str, int]:
    found = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if value is not None:
            found[f"{ours}_token_id"] = value
    return found


def _rope_scaling(keys: Keys, head_dim: int) -> dict[str, Any]:
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


def _llama3_scaling(keys: Keys, head_dim: int) -> dict[str, Any]:
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
