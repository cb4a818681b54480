"""The low-rank inputs of a graph that was exported with room for an adapter.

LAYER.lora_A (rank, K) and LAYER.lora_B (N, rank): y = W x + B A x; rank 0 changes nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Incompatible

Float32 = NDArray[np.float32]
Adapter = Mapping[str, Float32]
SUFFIXES = (".lora_A", ".lora_B")


def fill(inputs: Mapping[str, list[Any]], adapter: Adapter | None) -> dict[str, Float32]:
    """What goes into each low-rank input; `inputs` are a graph's shapes by name, ranks symbolic.

    Incompatible when the graph has no room for the adapter, or it is for another model.
    """
    room = {name: shape for name, shape in inputs.items() if name.endswith(SUFFIXES)}
    given = dict(adapter or {})
    if given and not room:
        raise Incompatible(
            "this bundle has no room for an adapter; export it again with --lora DIR "
            "--lora-mode runtime"
        )
    for name, array in given.items():
        wanted = room.get(name)
        if wanted is None:
            raise Incompatible(
                f"the adapter changes {_layer(name)}, for which this bundle has no room; export "
                "it again with --lora DIR --lora-mode runtime"
            )
        fits = [size for size in zip(wanted, array.shape, strict=False) if type(size[0]) is int]
        if array.ndim != 2 or any(size != found for size, found in fits):
            raise Incompatible(
                f"the adapter's {name} is {array.shape}, this model needs {tuple(wanted)}; "
                "use the model that it was trained on"
            )
    return {name: given.get(name, _nothing(shape)) for name, shape in room.items()}


def _nothing(shape: list[Any]) -> Float32:
    return np.zeros([size if type(size) is int else 0 for size in shape], np.float32)


def _layer(name: str) -> str:
    return name.removesuffix(SUFFIXES[0]).removesuffix(SUFFIXES[1])
