"""The graphs of a bundle, drawn over one data file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm_export import io
from edgellm_export.arch import Architecture
from edgellm_export.graph import EXACT, Graph
from edgellm_export.kv import FLOAT32_KV, KVType


@dataclass(frozen=True, slots=True)
class Model:
    """Stored weights, and what draws graphs of them into the folder of their data file."""

    architecture: Architecture
    weights: Any
    data: Path

    @property
    def shape(self) -> Shape:
        return self.architecture.shape(self.weights)

    def built(
        self,
        path: Path,
        inputs: Callable[[Graph], io.Inputs],
        accuracy_level: int,
        kind: KVType = FLOAT32_KV,
    ) -> Graph:
        """The graph that `path` will hold, not written yet."""
        g = Graph(path.stem, self.data.name, accuracy_level)
        g.kv = kind
        self.architecture.build(g, inputs(g), self.weights)
        return g


@dataclass(frozen=True, slots=True)
class Drawn:
    """`exact`, `cached` and `plain` are for the self-check only (see verify.Candidate). With a
    float32 cache `cached` is `exact` and `plain` is `native`."""

    native: Path
    portable: Path
    exact: Path
    cached: Path
    plain: Path

    def forget(self) -> None:
        """Deletes what only the self-check needed."""
        for path in {self.exact, self.cached, self.plain} - {self.native}:
            path.unlink()


def draw(model: Model, suffix: str, accuracy_level: int, kind: KVType) -> Drawn:
    """The graphs of a bundle, written; `kind` is its cache."""
    folder = model.data.parent
    other = kind.dtype != "float32"
    drawn = Drawn(
        native=folder / f"edgellm{suffix}.onnx",
        portable=folder / f"model{suffix}.onnx",
        exact=folder / f"check{suffix}.onnx",
        cached=folder / f"{'cached' if other else 'check'}{suffix}.onnx",
        plain=folder / f"{'plain' if other else 'edgellm'}{suffix}.onnx",
    )
    wanted = {
        drawn.native: (io.native, accuracy_level, kind),
        drawn.portable: (io.portable, accuracy_level, kind),
        drawn.cached: (io.native, EXACT, kind),
        drawn.exact: (io.native, EXACT, FLOAT32_KV),
        drawn.plain: (io.native, accuracy_level, FLOAT32_KV),
    }
    for path, how in wanted.items():
        model.built(path, *how).save(path)
    return drawn
