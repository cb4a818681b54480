"""A checkpoint without the layers that change least.

Layers are left out one after the other, each time the one without which the KL divergence from
the whole model is smallest. Small models have few layers to spare: this makes drafts for
speculation, which the whole model corrects, rather than models to talk to.
Source of the idea: Men et al., arXiv:2403.03853 (ShortGPT), whose block influence is reported too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.errors import UsageError
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.quantize.capture import Clock, Notice
from edgellm_export.recipe import Treatment
from edgellm_export.shrink.measure import Switched
from edgellm_export.shrink.wrapped import Wrapped
from edgellm_export.weights import Weight

_NAME = re.compile(r"model\.layers\.(\d+)(\..+)", re.ASCII)
# Settings with one value a layer.
_BY_LAYER = ("layer_types", "no_rope_layers")


def _gemma_kinds(every: int) -> list[str]:
    return ["sliding_attention"] * (every - 1) + ["full_attention"]


# What a config that lists no layers means by their numbers: the key that lists them, and its
# values for the first few, which repeat.
_PATTERNS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Sequence[Any]]]] = {
    "gemma2": ("layer_types", lambda _: _gemma_kinds(2)),
    "gemma3_text": ("layer_types", lambda c: _gemma_kinds(c.get("sliding_window_pattern", 6))),
    "smollm3": (
        "no_rope_layers",
        lambda c: [1] * (c.get("no_rope_layer_interval", 4) - 1) + [0],
    ),
}


class FewerLayers(Wrapped):
    """See `Checkpoint`. Layer i is what layer kept[i] of the base was."""

    def __init__(self, base: Checkpoint, kept: Sequence[int]) -> None:
        super().__init__(base)
        self._kept = kept
        self._new = {old: new for new, old in enumerate(kept)}
        self.config = _config(base.config, kept)
        layers = base.config["num_hidden_layers"]
        self.notices.append(f"{len(kept)} of {layers} layers are kept")

    def names(self) -> frozenset[str]:
        return frozenset(
            new for name in self.base.names() if (new := self._new_name(name)) is not None
        )

    def weight(self, name: str) -> Weight:
        return self.base.weight(self._old_name(name))

    def instead(self) -> dict[str, Treatment]:
        found = super().instead()
        return {
            new: treatment
            for name, treatment in found.items()
            if (new := self._new_name(name)) is not None
        }

    def _old_name(self, name: str) -> str:
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) >= len(self._kept):
            return name
        return f"model.layers.{self._kept[int(match[1])]}{match[2]}"

    def _new_name(self, name: str) -> str | None:
        """None for a tensor of a layer that has gone."""
        match = _NAME.fullmatch(name)
        if match is None:
            return name
        new = self._new.get(int(match[1]))
        return None if new is None else f"model.layers.{new}{match[2]}"


def _config(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The config of the layers `kept`: what went by a layer's number goes by a list."""
    found, layers = dict(config), config["num_hidden_layers"]
    key, pattern = _PATTERNS.get(config["model_type"], ("", None))
    if pattern is not None and found.get(key) is None:
        values = pattern(config)
        found[key] = [values[i % len(values)] for i in range(layers)]
    for key in _BY_LAYER:
        if isinstance(found.get(key), list):
            found[key] = [found[key][i] for i in kept]
    if config["model_type"] == "qwen3_moe":
        # Every layer has experts, but for these.
        dense, every = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step", 1)
        without = [new for new, i in enumerate(kept) if i in dense or (i + 1) % every]
        found |= {"mlp_only_layers": without, "decoder_sparse_step": 1}
    return {**found, "num_hidden_layers": len(kept)}


@dataclass(frozen=True, slots=True)
class Choice:
    """Layers that go, in the order they went; per layer its influence and the mean KL of leaving
    it out alone; `kl`: of leaving all of them out. Nats a token."""

    dropped: tuple[int, ...]
    influence: tuple[float, ...]
    alone: tuple[float, ...]
    kl: float

    def kept(self) -> list[int]:
        return [i for i in range(len(self.influence)) if i not in self.dropped]

    def table(self) -> list[str]:
        """For a person: a head, and a line a layer."""
        rows = zip(self.influence, self.alone, strict=True)
        lines = [
            f"{i:5}  {influence:9.4f}  {kl:8.4f}  {'dropped' if i in self.dropped else ''}".rstrip()
            for i, (influence, kl) in enumerate(rows)
        ]
        return ["layer  influence  KL alone", *lines]

    def to_json(self) -> dict[str, Any]:
        return {
            "dropped": sorted(self.dropped),
            "kl": _rounded(self.kl),
            "influence": [_rounded(value) for value in self.influence],
            "kl_alone": [_rounded(value) for value in self.alone],
        }


def choose(model: Switched, count: int, notice: Notice) -> Choice:
    """The `count` layers to leave out; UsageError unless some layers stay."""
    if not 0 < count < model.layers:
        raise UsageError(
            f"--drop-layers must be from 1 to {model.layers - 1} for a model of {model.layers} "
            f"layers, got {count}"
        )
    clock = Clock(sum(model.layers - i for i in range(count)), notice, "leaving out layers")
    dropped: list[int] = []
    alone: dict[int, float] = {}
    kl = 0.0
    for _ in range(count):
        found = {}
        for layer in range(model.layers):
            if layer not in dropped:
                found[layer] = model.divergence({*dropped, layer})
                clock.tick()
        alone = alone or found
        best = min(found, key=found.__getitem__)
        kl = found[best]
        dropped.append(best)
    return Choice(
        tuple(dropped), tuple(model.influence), tuple(alone[i] for i in range(model.layers)), kl
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
