"""Numbers of a GGUF file's metadata, read by the architecture's own keys."""

from __future__ import annotations

import numpy as np

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.gguf_blocks import load
from edgellm_export.checkpoint.gguf_file import GgufFile
from edgellm_export.checkpoint.mapped import AGAIN, shown
from edgellm_export.weights import to_float32


class Keys:
    """Numbers under this architecture's own prefix; Corrupt names the key that is wrong."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.prefix = f"{file.metadata['general.architecture']}."

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.file.metadata.get(self.prefix + key, default)
        if isinstance(value, list):
            raise Incompatible(
                f"{self.file.path}: {self.prefix}{key} differs from layer to layer; "
                "this variant cannot be read"
            )
        if type(value) is not int:
            raise self._wrong(key, value)
        return value

    def decimal(self, key: str, default: float | None = None) -> float:
        """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
        value = self.file.metadata.get(self.prefix + key, default)
        if type(value) is not float:
            raise self._wrong(key, value)
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def numbers(self, tensor: str) -> list[float]:
        """The values of a small float tensor, each the shortest decimal; [] when it is missing."""
        found = self.file.tensors.get(tensor)
        if found is None:
            return []
        values = to_float32(load(self.file, found)).reshape(-1)
        return [float(str(value)) for value in values]

    def _wrong(self, key: str, value: object) -> Corrupt:
        found = "missing" if value is None else f"{shown(value)}, not a number"
        return Corrupt(f"{self.file.path}: metadata {self.prefix}{key} is {found}; {AGAIN}")
