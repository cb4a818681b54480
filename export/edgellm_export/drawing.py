"""The graphs of a bundle, drawn over one data file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm_export import io
from edgellm_export.arch import Architecture
from edgellm_export.graph import EXACT, FLOAT, FLOAT16, Graph
from edgellm_export.kv import FLOAT32_KV, KVType
from edgellm_export.recipe import Recipe


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
        half: bool = False,
    ) -> Graph:
        """The graph that `path` will hold, not written yet; `half`: float16 activations."""
        g = Graph(path.stem, self.data.name, accuracy_level)
        g.kv = kind
        g.activations = FLOAT16 if half else FLOAT
        self.architecture.build(g, inputs(g), self.weights)
        return g


@dataclass(frozen=True, slots=True)
class Drawn:
    """The graphs of a bundle over one data file, and those that only its self-check needs.

    `exact` computes in float32; so do `cached`, with the bundle's kind of cache, and `standard`,
    which is `portable` like that, None where `portable` computes as `native` does to the last bit.
    `plain` is `native` on a float32 cache. With a float32 cache `cached` is `exact` and `plain` is
    `native`; float16 activations have no float32 cache, so that `plain` is `native` there too.
    `kind` is the bundle's cache.
    """

    native: Path
    portable: Path
    exact: Path
    cached: Path
    plain: Path
    standard: Path | None = None
    kind: KVType = FLOAT32_KV

    def forget(self) -> None:
        """Deletes what only the self-check needed."""
        for path in {self.exact, self.cached, self.plain, self.standard} - {self.native}:
            if path is not None:
                path.unlink()


def draw(model: Model, suffix: str, chosen: Recipe, kind: KVType) -> Drawn:
    """The graphs of a bundle, written; `kind` is its cache."""
    folder = model.data.parent
    half, level = chosen.activations == "float16", chosen.accuracy_level
    other = kind.dtype != "float32"
    drawn = Drawn(
        native=folder / f"edgellm{suffix}.onnx",
        portable=folder / f"model{suffix}.onnx",
        exact=folder / f"check{suffix}.onnx",
        cached=folder / f"{'cached' if other else 'check'}{suffix}.onnx",
        plain=folder / f"{'plain' if other and not half else 'edgellm'}{suffix}.onnx",
        standard=folder / f"standard{suffix}.onnx",
        kind=kind,
    )
    wanted: dict[Path, tuple[Callable[[Graph], io.Inputs], int, KVType, bool]] = {
        drawn.plain: (io.native, level, FLOAT32_KV, False),
        drawn.native: (io.native, level, kind, half),
        drawn.portable: (io.portable, level, kind, half),
        drawn.cached: (io.native, EXACT, kind, False),
        drawn.exact: (io.native, EXACT, FLOAT32_KV, False),
        folder / f"standard{suffix}.onnx": (io.portable, EXACT, kind, False),
    }
    for path, how in wanted.items():
        model.built(path, *how).save(path)
    return drawn
