"""Rotary frequencies against the published formulas, written again one number at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgellm.errors import Incompatible
from edgellm_export.rope import frequencies

# Llama 3.1, as its config.json has it.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(
    width: int, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"head_dim": width, "rope_theta": theta, "rope_scaling": scaling}


def published(width: int, theta: float, scaling: Mapping[str, Any]) -> list[float]:
    """transformers' modeling_rope_utils.py, `_compute_llama3_parameters`, without arrays."""
    found = []
    old = scaling["original_max_position_embeddings"]
    low_wavelen, high_wavelen = old / scaling["low_freq_factor"], old / scaling["high_freq_factor"]
    for i in range(0, width, 2):
        frequency = 1.0 / theta ** (i / width)
        wavelen = 2 * math.pi / frequency
        if wavelen < high_wavelen:
            found.append(frequency)
        elif wavelen > low_wavelen:
            found.append(frequency / scaling["factor"])
        else:
            smooth = (old / wavelen - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            found.append((1 - smooth) * frequency / scaling["factor"] + smooth * frequency)
    return found


@pytest.mark.parametrize(("width", "theta"), [(64, 1e4), (128, 5e5), (2, 1e4), (96, 1e6)])
def test_plain_frequencies_are_powers_of_theta(width: int, theta: float) -> None:
    found = frequencies(config(width, theta))
    assert found.shape == (width // 2,)
    assert found.dtype == np.float64
    expected = [theta ** (-2 * i / width) for i in range(width // 2)]
    assert np.allclose(found, expected, rtol=1e-14)
    assert np.array_equal(found, frequencies(config(width, theta, {"rope_type": "default"})))


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = frequencies(config(64, 1e4, {"rope_type": "linear", "factor": 4.0}))
    assert np.allclose(scaled * 4, frequencies(config(64)), rtol=1e-14)


@pytest.mark.parametrize(
    ("width", "theta", "changes"),
    [
        (128, 5e5, {}),
        (64, 5e5, {"factor": 32.0}),
        (128, 1e4, {"original_max_position_embeddings": 256}),
        (64, 1e4, {"low_freq_factor": 2.0, "high_freq_factor": 3.0}),
    ],
)
def test_llama3_scaling_is_the_published_one(
    width: int, theta: float, changes: dict[str, float]
) -> None:
    scaling = {**LLAMA3, **changes}
    found = frequencies(config(width, theta, scaling))
    assert np.allclose(found, published(width, theta, scaling), rtol=1e-12)
    plain = frequencies(config(width, theta))
    # All three branches are there: kept, blended, divided.
    ratio = plain / found
    assert ratio.min() == pytest.approx(1)
    assert ratio.max() == pytest.approx(scaling["factor"])
    assert ((ratio > 1.001) & (ratio < scaling["factor"] * 0.999)).any()


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "nonsense", None])
def test_another_scaling_is_refused_by_name(kind: str | None) -> None:
    with pytest.raises(Incompatible, match=str(kind)):
        frequencies(config(64, 1e4, {"rope_type": kind, "factor": 2.0}))
