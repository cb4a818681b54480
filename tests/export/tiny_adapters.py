"""Seeded random LoRA adapters, as PEFT writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiny_models as tiny

from edgellm_export.checkpoint import Checkpoint


def write_adapter(
    folder: Path, base: Checkpoint, parts: Sequence[str], rank: int = 4, seed: int = 11
) -> Path:
    """A PEFT folder that changes these parts of every layer."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for i in range(base.config["num_hidden_layers"]):
        for part in parts:
            if f"model.layers.{i}.{part}.weight" not in base.names():
                continue
            n, k = base.weight(f"model.layers.{i}.{part}.weight").shape
            at = f"base_model.model.model.layers.{i}.{part}"
            tensors[f"{at}.lora_A.weight"] = rng.standard_normal((rank, k)) / np.sqrt(k)
            tensors[f"{at}.lora_B.weight"] = rng.standard_normal((n, rank)) / 4
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tiny.write_tensors(folder, {name: a.astype(np.float32) for name, a in tensors.items()})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    return folder
