"""Checks of a model's config before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.mapped import AGAIN, shown

# Upper bounds: ten times what the largest published models have, so a lie shows, a model does not.
_WHOLE = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 11,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 13,
    "max_position_embeddings": 1 << 28,
    "vocab_size": 1 << 24,
}


def check_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same mapping with `num_key_value_heads`, `head_dim` and the `rope_…` keys filled in.

    Corrupt or Incompatible names the key that cannot be; `where` opens the message.
    """
    checked = {**config, **_rope(config, where)}
    _names(checked, where)
    if "dtype" not in checked and "torch_dtype" in checked:
        checked["dtype"] = checked["torch_dtype"]
    heads = _whole(checked, "num_attention_heads", where)
    checked["num_key_value_heads"] = _filled(checked, "num_key_value_heads", heads)
    checked["head_dim"] = _filled(checked, "head_dim", _ratio(checked, heads, where))
    for key in _WHOLE:
        _whole(checked, key, where)
    if heads % checked["num_key_value_heads"]:
        _fail(where, "num_key_value_heads", checked, f"a divisor of num_attention_heads {heads}")
    if checked["head_dim"] % 2:
        _fail(where, "head_dim", checked, "even")
    _decimal(checked, "rms_norm_eps", where, 1e-12, 1e-1)
    _decimal(checked, "rope_theta", where, 1.0, 1e12)
    _token_ids(checked, where)
    return checked


def _filled(config: Mapping[str, Any], key: str, default: int) -> Any:
    value = config.get(key)
    return default if value is None else value


def _ratio(config: Mapping[str, Any], heads: int, where: str) -> int:
    hidden = _whole(config, "hidden_size", where)
    if config.get("head_dim") is None and hidden % heads:
        _fail(where, "hidden_size", config, f"a multiple of num_attention_heads {heads}")
    return hidden // heads


def _whole(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= _WHOLE[key]:
        _fail(where, key, config, f"a whole number from 1 to {_WHOLE[key]}")
    return value


def _decimal(config: Mapping[str, Any], key: str, where: str, low: float, high: float) -> None:
    value: Any = config.get(key)
    if value is None and key == "rms_norm_eps":
        return  # models with another norm have another key
    number = value if type(value) in (int, float) else math.nan
    if not low <= number <= high:
        _fail(where, key, config, f"a number from {low:g} to {high:g}")


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` (None or with `rope_type`), as transformers 4 writes them.

    transformers 5 writes both as one `rope_parameters`.
    """
    both = config.get("rope_parameters")
    scaling = config.get("rope_scaling") if both is None else both
    if not isinstance(scaling, dict | None):
        _fail(where, "rope_scaling" if both is None else "rope_parameters", config, "a mapping")
    gemma = config.get("model_type") == "gemma3_text"
    if gemma and scaling and scaling.keys() <= {"full_attention", "sliding_attention"}:
        return _rope_by_layer(scaling, config, where)
    rest, base = dict(scaling or {}), 1e6 if gemma else 10000.0
    found = {"rope_theta": rest.pop("rope_theta", None) or config.get("rope_theta") or base}
    if "partial_rotary_factor" in rest:
        found["partial_rotary_factor"] = rest.pop("partial_rotary_factor")
    kind = rest.pop("rope_type", None) or rest.pop("type", None) or "default"
    rest.pop("type", None)
    for key, value in rest.items():
        _scaling_number(key, value, where)
    return found | {"rope_scaling": None if kind == "default" else {"rope_type": kind, **rest}}


def _rope_by_layer(
    by_layer: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Gemma 3's two rotary bases: the local one becomes `rope_local_base_freq`."""
    near = by_layer.get("sliding_attention") or {}
    far = _rope({**config, "rope_parameters": by_layer.get("full_attention")}, where)
    if not isinstance(near, dict) or near.get("rope_type", "default") != "default":
        raise Incompatible(f"{where}: rope_parameters scale the local layers; that is not known")
    local = {"rope_local_base_freq": near["rope_theta"]} if "rope_theta" in near else {}
    return far | local


def _scaling_number(key: str, value: Any, where: str) -> None:
    if isinstance(value, dict):
        raise Incompatible(f"{where}: rope_parameters differ by layer, which cannot be read")
    for one in value if isinstance(value, list) else [value]:
        if type(one) in (int, float) and not 0 < one < 1e12:
            raise Corrupt(f"{where}: rope scaling {shown(key)} cannot be {shown(one)}; {AGAIN}")


def _names(config: Mapping[str, Any], where: str) -> None:
    if not isinstance(config.get("model_type"), str):
        _fail(where, "model_type", config, "a name")
    classes = config.get("architectures", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        _fail(where, "architectures", config, "a list of names")
    if not isinstance(config.get("tie_word_embeddings", False), bool):
        _fail(where, "tie_word_embeddings", config, "true or false")
    if config.get("quantization_config") is not None:
        raise Incompatible(
            f"{where}: quantization_config is set, and quantized safetensors cannot be read; "
            "use the original float weights or a GGUF file"
        )


def _token_ids(config: dict[str, Any], where: str) -> None:
    pad = config.get("pad_token_id")
    if type(pad) is int and not 0 <= pad < config["vocab_size"]:
        # Llama's first configs say -1 for none; nothing is ever padded here.
        del config["pad_token_id"]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and (type(one) is not int or not 0 <= one < config["vocab_size"]):
                _fail(where, key, config, f"a token id below {config['vocab_size']}")


def _fail(where: str, key: str, config: Mapping[str, Any], allowed: str) -> NoReturn:
    if config.get(key) is None:
        kind = shown(config.get("model_type"))
        raise Incompatible(f"{where}: {key} is missing; model type {kind} cannot be read")
    raise Corrupt(f"{where}: {key} must be {allowed}, got {shown(config[key])}; {AGAIN}")
