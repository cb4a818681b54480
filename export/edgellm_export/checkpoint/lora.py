"""PEFT LoRA adapters, and a checkpoint with one merged into its weights: W + scaling * B @ A.

    adapter_config.json          r, lora_alpha, use_rslora, and much that is refused by name
    adapter_model.safetensors    base_model.model.NAME.lora_A.weight (r, K), lora_B.weight (N, r)

scaling is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (arXiv:2312.03732).
Source: peft/tuners/lora/{config,layer}.py; Hu et al., arXiv:2106.09685.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import Corrupt, Incompatible, NotFound
from edgellm_export.checkpoint import Checkpoint, TextFiles
from edgellm_export.checkpoint.folder import inside, read_object
from edgellm_export.checkpoint.mapped import AGAIN, all_finite, shown
from edgellm_export.checkpoint.safetensors import DTYPES, read_floats
from edgellm_export.checkpoint.safetensors_file import SafetensorsFile
from edgellm_export.checkpoint.safetensors_file import read as read_safetensors
from edgellm_export.recipe import Float, Integer, Treatment
from edgellm_export.weights import Blocks, Dense, Float32, Weight, to_float32

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANK_LIMIT = 1 << 14
# What a merged layer becomes where the recipe would keep the base's own blocks.
REQUANTIZED = Integer(8, 32, False)

_NAME = re.compile(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight", re.ASCII)
# Settings that change what the numbers mean, with the values that do not.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}
# Their adapters belong to a base whose weights were changed when training began.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq")


class Adapter:
    """A PEFT folder, checked. `stems` are the layers it changes: model.layers.0.mlp.up_proj."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NotFound(f"no adapter folder {folder}; check the path")
        config = read_object(folder, CONFIG)
        self._rank, self._scaling = _scaling(config, folder / CONFIG)
        if not inside(folder, WEIGHTS).exists():
            raise NotFound(f"{folder} has no {WEIGHTS}; an adapter as a pickle is never loaded")
        self._file = read_safetensors(folder / WEIGHTS)
        self.path, self.stems = self._file.path, _stems(self._file)

    def check(self, stem: str, shape: tuple[int, ...]) -> None:
        """Incompatible unless the two matrices fit a layer of `shape` (N, K)."""
        n, k = shape
        for part, wanted in (("A", (self._rank, k)), ("B", (n, self._rank))):
            found = self._file.tensors[_tensor(stem, part)]
            if found.shape != wanted:
                raise Incompatible(
                    f"{self.path}: tensor {shown(found.name)} has shape {found.shape}, this model "
                    f"needs {wanted}; use the model that the adapter was trained on"
                )

    def matrices(self, stem: str) -> tuple[Float32, Float32]:
        """A (r, K) and scaling * B (N, r); Corrupt when they are not finite."""
        a, b = (self._floats(_tensor(stem, part)) for part in "AB")
        return a, np.float32(self._scaling) * b

    def change(self, stem: str) -> Float32:
        """What it adds to the layer's weight: scaling * B @ A, (N, K)."""
        a, b = self.matrices(stem)
        return b @ a

    def _floats(self, name: str) -> Float32:
        values = read_floats(self._file, self._file.tensors[name])
        all_finite(self.path, name, values)
        return values


class LoraCheckpoint:
    """See `Checkpoint`. Everything but the merged weights is the base's."""

    def __init__(self, base: Checkpoint, folder: Path) -> None:
        self._base = base
        self.path, self.config, self.licence = base.path, base.config, base.licence
        self.quantized = base.quantized
        self._adapter = Adapter(folder)
        self._stems = known_stems(self._adapter, base)
        self.notices = [
            *base.notices,
            f"{len(self._stems)} layers have the adapter {folder.name} merged into them",
        ]

    def names(self) -> frozenset[str]:
        return self._base.names()

    def weight(self, name: str) -> Weight:
        """One tensor, merged where the adapter changes it; see `Checkpoint.weight`."""
        weight = self._base.weight(name)
        stem = self._stems.get(name)
        if stem is None:
            return weight
        self._adapter.check(stem, weight.shape)
        adapter = self._adapter

        def merged() -> Float32:
            values: Float32 = to_float32(weight) + adapter.change(stem)
            all_finite(adapter.path, name, values)
            return values

        return Dense(weight.shape, "float32", merged)

    def text_files(self) -> TextFiles:
        return self._base.text_files()

    def instead(self) -> dict[str, Treatment]:
        """How merged weights are stored where others stay as they are: sums are no blocks."""
        found: dict[str, Treatment] = {}
        for name in self._stems:
            weight = self._base.weight(name)
            if isinstance(weight, Blocks):
                found[name] = REQUANTIZED
            elif weight.dtype == "float16":
                found[name] = Float("float16")
        return found


def _scaling(config: Mapping[str, Any], path: Path) -> tuple[int, float]:
    """Rank, and the factor of B @ A; Incompatible names a setting that is not understood."""
    for key, allowed in _PLAIN.items():
        if config.get(key) not in allowed:
            raise Incompatible(
                f"{path}: {key} is {shown(config.get(key))}, and only plain LoRA can be merged; "
                "merge it with peft's merge_and_unload first"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
        raise Incompatible(
            f"{path}: init_lora_weights is {shown(start)}, which changes the base model as well; "
            "merge it with peft's merge_and_unload first"
        )
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= RANK_LIMIT:
        raise Corrupt(f"{path}: r must be a whole number from 1, got {shown(rank)}; {AGAIN}")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise Corrupt(f"{path}: lora_alpha must be a number, got {shown(alpha)}; {AGAIN}")
    return rank, float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def known_stems(adapter: Adapter, base: Checkpoint) -> dict[str, str]:
    """Names of the weights that the adapter changes, and its stems for them; Incompatible names
    one that `base` does not have."""
    names = base.names()
    for stem in adapter.stems:
        if f"{stem}.weight" not in names:
            raise Incompatible(
                f"{adapter.path} changes {shown(stem)}, which this model does not have; "
                "use the model that the adapter was trained on"
            )
    return {f"{stem}.weight": stem for stem in adapter.stems}


def _tensor(stem: str, part: str) -> str:
    return f"base_model.model.{stem}.lora_{part}.weight"


def _stems(file: SafetensorsFile) -> list[str]:
    """The layers that have both matrices, ascending."""
    pairs: dict[str, set[str]] = {}
    for name, tensor in file.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.kind not in DTYPES:
            raise Incompatible(
                f"{file.path}: tensor {shown(name)} of type {tensor.kind} is not the A or B of a "
                "linear layer; merge the adapter with peft's merge_and_unload first"
            )
        pairs.setdefault(match[1], set()).add(match[2])
    for stem, parts in pairs.items():
        if len(parts) != 2:
            raise Corrupt(f"{file.path}: {shown(stem)} lacks one of lora_A and lora_B; {AGAIN}")
    if not pairs:
        raise Corrupt(f"{file.path} changes no layer; {AGAIN}")
    return sorted(pairs)
