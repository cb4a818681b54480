"""A checkpoint that changes another one and leaves the rest as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm_export.checkpoint import Checkpoint, TextFiles
from edgellm_export.checkpoint.lora import LoraCheckpoint
from edgellm_export.recipe import Treatment
from edgellm_export.weights import Weight


class Wrapped:
    """See `Checkpoint`. All is the base's until a subclass says otherwise."""

    def __init__(self, base: Checkpoint) -> None:
        self.base = base
        self.path, self.licence, self.quantized = base.path, base.licence, base.quantized
        self.config: Mapping[str, Any] = base.config
        self.notices = list(base.notices)

    def names(self) -> frozenset[str]:
        return self.base.names()

    def weight(self, name: str) -> Weight:
        return self.base.weight(name)

    def text_files(self) -> TextFiles:
        return self.base.text_files()

    def instead(self) -> dict[str, Treatment]:
        """How changed weights are stored where others keep their blocks; see `instead_of`."""
        return instead_of(self.base)


def instead_of(checkpoint: Checkpoint) -> dict[str, Treatment]:
    """By name, the treatment of weights that are no longer what the recipe could keep."""
    return checkpoint.instead() if isinstance(checkpoint, LoraCheckpoint | Wrapped) else {}
