"""A checkpoint whose MLPs have fewer neurons: those that say least go, the rest takes over.

A neuron is a row of gate and up and a column of down. Its weight in the sum is how much it is
fed times how much it passes on: E[x_j²] · |down[:, j]|². What is left of down is fitted so that
its outputs on calibration text change least: W' = W H[:, S] H[S, S]⁻¹, H = XᵀX of its inputs x.
Source of the fit: He et al., arXiv:1707.06168 (channel pruning with least squares); of the score:
Sun et al., arXiv:2306.11695 (Wanda). Without training afterwards it costs much quality.
Shapes: D model width, K neurons.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible, UsageError
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.lora import REQUANTIZED
from edgellm_export.recipe import Treatment
from edgellm_export.shrink.wrapped import Wrapped
from edgellm_export.weights import Blocks, Dense, Float32, Weight, to_float32

# Every block size that a recipe may ask for divides it.
STEP = 32
# Keeps H invertible, as a share of its mean diagonal.
DAMPING = 1e-2
_ROWS = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate|up)_proj\.(weight|bias)", re.ASCII)
_COLUMNS = re.compile(r"model\.layers\.(\d+)\.mlp\.down_proj\.weight", re.ASCII)


@dataclass(frozen=True, slots=True)
class Narrow:
    """One layer's neurons that stay, ascending, and down's weights for them, (D, len(kept))."""

    kept: NDArray[np.int64]
    down: Float32


class NarrowMlp(Wrapped):
    """See `Checkpoint`. What is left of each down matrix is held in memory, float32."""

    def __init__(self, base: Checkpoint, layers: Mapping[int, Narrow]) -> None:
        super().__init__(base)
        self._layers = layers
        width, old = len(layers[0].kept), base.config["intermediate_size"]
        self.config = {**base.config, "intermediate_size": width}
        self.notices.append(f"{width} of {old} neurons are kept in each MLP")

    def weight(self, name: str) -> Weight:
        weight = self.base.weight(name)
        if (match := _COLUMNS.fullmatch(name)) is not None:
            down = self._layers[int(match[1])].down
            return Dense(down.shape, _dtype(weight), lambda: down)
        if (match := _ROWS.fullmatch(name)) is None:
            return weight
        kept = self._layers[int(match[1])].kept
        if isinstance(weight, Blocks):
            return weight.rows(kept)
        shape = (len(kept), *weight.shape[1:])
        return Dense(shape, weight.dtype, lambda: weight.numpy()[kept])

    def instead(self) -> dict[str, Treatment]:
        """Blocks with columns missing are no blocks: they are rounded anew."""
        found = super().instead()
        for i in self._layers:
            name = f"model.layers.{i}.mlp.down_proj.weight"
            if isinstance(self.base.weight(name), Blocks):
                found[name] = REQUANTIZED
        return found


def _dtype(weight: Weight) -> str:
    """float16 stays what is stored; the others hold the fit as it is."""
    return "float16" if isinstance(weight, Dense) and weight.dtype == "float16" else "float32"


def check(checkpoint: Checkpoint, width: int) -> None:
    """UsageError for a width that is none, Incompatible for MLPs that are not alike."""
    old, layers = checkpoint.config["intermediate_size"], checkpoint.config["num_hidden_layers"]
    if width % STEP or not 0 < width < old:
        raise UsageError(
            f"--mlp-width must be a multiple of {STEP} below {old}, this model's own, got {width}"
        )
    names = checkpoint.names()
    for i in range(layers):
        for part in ("gate", "up", "down"):
            name = f"model.layers.{i}.mlp.{part}_proj.weight"
            if name not in names:
                raise Incompatible(
                    f"this model has no {name}; --mlp-width needs gate, up and down apart in "
                    "every layer"
                )


def narrow(
    checkpoint: Checkpoint, width: int, statistics: Callable[[str], Float32 | None]
) -> NarrowMlp:
    """`checkpoint` with the `width` neurons of each MLP that say most on the calibration text."""
    layers = {}
    for i in range(checkpoint.config["num_hidden_layers"]):
        down = to_float32(checkpoint.weight(f"model.layers.{i}.mlp.down_proj.weight"))
        h = statistics(f"layers.{i}.down")
        if h is None:
            raise Incompatible(f"nothing is known of the inputs of layers.{i}.down")
        layers[i] = fitted(down, h, width)
    return NarrowMlp(checkpoint, layers)


def fitted(down: Float32, h: Float32, width: int) -> Narrow:
    """The `width` neurons that matter most to `down` (D, K), given H (K, K), and their weights."""
    power = np.diag(h) * (down**2).sum(axis=0)
    kept = np.sort(np.argsort(power)[-width:]).astype(np.int64)
    inner = h[np.ix_(kept, kept)].astype(np.float64)
    inner[np.diag_indices(width)] += DAMPING * max(float(np.diag(inner).mean()), 1e-30)
    wanted = down.astype(np.float64) @ h[:, kept]
    # Damping pulls towards the weights that are there, not towards zero.
    wanted += DAMPING * max(float(np.diag(h)[kept].mean()), 1e-30) * down[:, kept]
    return Narrow(kept, np.linalg.solve(inner, wanted.T).T.astype(np.float32))
