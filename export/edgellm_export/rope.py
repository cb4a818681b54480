"""Rotary frequencies of a config, in radians a position.

Source: Su et al., arXiv:2104.09864; Llama 3's scaling: Hugging Face modeling_rope_utils.py,
`_compute_llama3_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible


def frequencies(config: Mapping[str, Any]) -> NDArray[np.float64]:
    """(N / 2,); Incompatible names a scaling that is not known here."""
    width = config["head_dim"]
    plain: NDArray[np.float64] = 1.0 / config["rope_theta"] ** (
        np.arange(0, width, 2, dtype=np.float64) / width
    )
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    match scaling.get("rope_type"):
        case "default":
            return plain
        case "linear":
            slowed: NDArray[np.float64] = plain / float(scaling["factor"])
            return slowed
        case "llama3":
            return _llama3(plain, scaling)
        case other:
            raise Incompatible(f"rope_scaling {other!r} is not supported by this builder")


def _llama3(plain: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Long waves slowed by `factor`, short ones kept, a smooth blend between."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    old = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / plain
    blend = np.clip((old / wavelength - low) / (high - low), 0, 1)
    blended: NDArray[np.float64] = (1 - blend) * plain / float(scaling["factor"]) + blend * plain
    return blended
