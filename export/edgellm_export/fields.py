"""What architectures ask of a config beyond the sizes that checkpoint/config.py has checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.weights import Float32

_LARGEST = 1 << 28


def check(config: Mapping[str, Any], builder: str, **allowed: tuple[object, ...]) -> None:
    """Incompatible names a key whose value is none of those the builder knows; a key may be left
    out. Corrupt says that the norms' epsilon is missing."""
    number(config, "rms_norm_eps")
    for key, values in allowed.items():
        if config.get(key) not in (None, *values):
            known = f"knows {', '.join(map(repr, values))}" if values else "has none"
            raise Incompatible(
                f"config.json: {key} is {config[key]!r}; the {builder} builder {known}"
            )


def whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number above zero; Corrupt names the key that holds none."""
    value = config.get(key, default)
    if type(value) is not int or not 0 < value <= _LARGEST:
        raise Corrupt(f"config.json: {key} must be a whole number above 0, got {value!r}")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number above zero; Corrupt names the key that holds none."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise Corrupt(f"config.json: {key} must be a number above 0, got {value!r}")
    return float(value)


def cap(config: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """A soft cap, None where the config says null."""
    return None if config.get(key, default) is None else number(config, key, default)


def window(config: Mapping[str, Any], default: int | None = None) -> int | None:
    """How many positions a token sees, itself among them; None: all there can be."""
    key = "sliding_window"
    if config.get(key, default) is None:
        return None
    size = whole(config, key, default)
    return size if size < config["max_position_embeddings"] else None


def sees_window(config: Mapping[str, Any], layer: int, every: int) -> bool:
    """Does the layer see a window only? By `layer_types`, else all but each `every`th do."""
    kinds = config.get("layer_types")
    if kinds is None:
        return bool((layer + 1) % every)
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != config["num_hidden_layers"]:
        raise Corrupt("config.json: layer_types must name the kind of every layer")
    if kinds[layer] not in known:
        raise Incompatible(
            f"config.json: layer_types has {kinds[layer]!r}; this builder knows {', '.join(known)}"
        )
    return bool(kinds[layer] == known[0])


def embedding_scale(config: Mapping[str, Any]) -> float:
    """sqrt(hidden_size) in the precision the model was made in, as Hugging Face rounds it: in
    bfloat16 33.94 is 34."""
    scale = np.sqrt(np.array([config["hidden_size"]], np.float32))
    match config.get("dtype"):
        case "bfloat16":
            return float(_bfloat16(scale)[0])
        case "float16":
            return float(scale.astype(np.float16)[0])
        case _:
            return float(scale[0])


def _bfloat16(values: Float32) -> Float32:
    """Rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def expert_count(config: Mapping[str, Any]) -> int:
    """How many experts a layer has, by either of the names that Hugging Face has given it."""
    key = "num_experts" if "num_experts" in config else "num_local_experts"
    return whole(config, key)
