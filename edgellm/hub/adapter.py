"""The hub's door to adapters: a PEFT folder as arrays, read by the exporter's own reader.

That reader needs numpy alone, so a device without the exporter's packages reads adapters too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_adapter(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The graph inputs of the adapter in `folder`: LAYER.lora_A (r, K) and LAYER.lora_B (N, r).

    NotFound, Corrupt and Incompatible say what is wrong with it.
    """
    from edgellm_export.checkpoint.lora import Adapter

    adapter = Adapter(folder)
    found = {}
    for stem in adapter.stems:
        found[f"{stem}.lora_A"], found[f"{stem}.lora_B"] = adapter.matrices(stem)
    return found
