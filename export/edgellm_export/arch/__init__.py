"""One file per architecture, named after Hugging Face's model_type.

An architecture reads downward: store its weights, say its shape, build its nodes.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any, Protocol

from edgellm.bundle.manifest import Shape
from edgellm.errors import Incompatible
from edgellm_export.graph import Graph
from edgellm_export.io import Inputs
from edgellm_export.store import WeightStore


class Architecture(Protocol):
    def store(self, weights: WeightStore) -> Any:
        """The model's weights in its own dataclass, written; passed on to the others unopened."""
        ...

    def shape(self, weights: Any) -> Shape: ...

    def build(self, g: Graph, inputs: Inputs, weights: Any) -> None:
        """Add every node from token ids to logits."""
        ...


def names() -> list[str]:
    """The model types that have a builder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(model_type: object) -> Architecture:
    """The architecture of that name; Incompatible lists those there are."""
    if model_type not in names():
        raise Incompatible(
            f"architecture {model_type!r} has no builder yet; there are: {', '.join(names())}"
        )
    module: Any = importlib.import_module(f"{__name__}.{model_type}")
    architecture: Architecture = module
    return architecture
