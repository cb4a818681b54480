"""The weights of a traced graph as a Checkpoint: by the names of their modules, as (N, K)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm_export.checkpoint import TextFiles
from edgellm_export.checkpoint.folder import read_object
from edgellm_export.checkpoint.mapped import all_finite
from edgellm_export.checkpoint.safetensors import licence, text_files
from edgellm_export.optimum.model import TracedModel
from edgellm_export.weights import Dense, Float32, Weight


class TracedCheckpoint:
    """See `Checkpoint`. All weights are float32, whatever the folder's own type was."""

    quantized = False

    def __init__(self, folder: Path, model: TracedModel) -> None:
        self.path = folder
        self.model = model
        self.notices: list[str] = []
        raw = read_object(folder, "config.json")
        if raw.pop("auto_map", None) is not None:
            self.notices.append(
                "config.json names custom code (auto_map): it is ignored, never run"
            )
        self.config: Mapping[str, Any] = raw
        self.licence = licence(folder)
        self._products = {f"{product.name}.weight": product for product in model.products}

    def names(self) -> frozenset[str]:
        """Matrices only: vectors are named by the graph."""
        return frozenset(self._products)

    def weight(self, name: str) -> Weight:
        """A matrix (N, K) by its module, or any other constant of the graph by its own name."""
        product = self._products.get(name)
        values = self.model.named(name) if product is None else self.model.matrix(product)

        def read() -> Float32:
            floats = np.asarray(values, np.float32)
            all_finite(self.path, name, floats)
            return floats

        return Dense(values.shape, "float32", read)

    def text_files(self) -> TextFiles:
        return text_files(self.path)
