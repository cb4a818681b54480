"""Reading model files: every format becomes a Checkpoint with Hugging Face's own names.

Nothing is executed and nothing is unpickled: safetensors and GGUF only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgellm_export.weights import Weight


@dataclass(frozen=True, slots=True)
class TextFiles:
    """What a bundle ships beside its graphs, as the text or JSON that will be written."""

    tokenizer_json: str
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)


class Checkpoint(Protocol):
    """A model on disk. `config` has the keys of a Hugging Face config.json, checked to be sane."""

    path: Path
    config: Mapping[str, Any]
    licence: str | None
    quantized: bool
    """Whether it has its own blocks, which are kept unless another precision is asked for."""
    notices: list[str]
    """Lines for the user: what was not carried over as it is."""

    def names(self) -> frozenset[str]:
        """Tensor names as Hugging Face writes them: model.layers.0.self_attn.q_proj.weight."""
        ...

    def weight(self, name: str) -> Weight:
        """One tensor, (N, K) or (N,); Corrupt names the tensor that is missing or damaged."""
        ...

    def text_files(self) -> TextFiles: ...
