"""Forward passes in plain numpy, written from the papers and not from the graph builders.

One file per architecture, named as in arch/, with a `forward`. They share no code with blocks.py
or arch/: the self-check compares the two. No cache, no packing, no chunks: all tokens at once,
float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm_export.reference.parts import Weight
from edgellm_export.weights import Float32


def forward(config: Mapping[str, Any], weight: Weight, ids: Sequence[int]) -> Float32:
    """Logits (T, V) after each of `ids`, by the architecture the config names."""
    module: Any = importlib.import_module(f"{__name__}.{config['model_type']}")
    logits: Float32 = module.forward(config, weight, ids)
    return logits
