"""What keys and values are stored as: the type of the cache, and its scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UsageError

# What people type, and what the manifest and numpy call it.
KVDtype = Literal["float32", "float16", "int8"]
KV_DTYPES: Mapping[str, KVDtype] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
# What the manifest's recipe says of them.
KV_WORDS = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "int8, one static scale for each channel of each head, calibrated",
}
# GroupQueryAttention clamps codes to -128 ... 127; scales are symmetric.
INT8_MAX = 127


@dataclass(frozen=True, slots=True)
class KVType:
    """`scales` has for each layer the steps of keys and of values, (K kv heads, N head width), each
    multiplying the stored integers; int8 needs them, the others have none."""

    dtype: KVDtype
    scales: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]] = ()


FLOAT32_KV = KVType("float32")


def kv_dtype(name: str | None, activations: Literal["float32", "float16"]) -> KVDtype:
    """The manifest's word for what people type, None being the type of the activations.

    UsageError lists what there is, or says what float16 activations do not go with: attention on
    CUDA and WebGPU, which they are for, reads float16 there (docs/OperatorKernels.md).
    """
    if name is None:
        return activations
    if name not in KV_DTYPES:
        raise UsageError(f"unknown KV cache type {name!r}; choose one of {', '.join(KV_DTYPES)}")
    if activations == "float16" and name != "fp16":
        raise UsageError(f"--kv {name} does not go with float16 activations; leave it out")
    return KV_DTYPES[name]
