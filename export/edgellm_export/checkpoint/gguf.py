"""A GGUF file as a Checkpoint: names and row order of Hugging Face, blocks carried over exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt
from edgellm_export.checkpoint import TextFiles
from edgellm_export.checkpoint import gguf_blocks as blocks
from edgellm_export.checkpoint import gguf_config as words
from edgellm_export.checkpoint import gguf_file as container
from edgellm_export.checkpoint.config import check_config
from edgellm_export.checkpoint.gguf_formats import FORMATS
from edgellm_export.checkpoint.mapped import AGAIN
from edgellm_export.checkpoint.shapes import check_shapes
from edgellm_export.weights import Blocks, Dense, Weight


class GgufCheckpoint:
    """See `Checkpoint`. `notices` are lines the user should see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.quantized = True
        self._file = container.read(path)
        self._architecture = words.architecture(self._file)
        self._tensors = words.tensors(self._file, self._architecture)
        self.config: Mapping[str, Any] = check_config(
            words.config(self._file, self._architecture), str(path)
        )
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        check_shapes(self.config, shapes, str(path))
        licence = self._file.metadata.get("general.license")
        self.licence = licence[:80] if isinstance(licence, str) else None
        self.notices = _notices(list(self._tensors.values()))

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def weight(self, name: str) -> Weight:
        """One tensor; see `Checkpoint.weight`."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise Corrupt(f"{self.path} has no tensor for {name}; {AGAIN}")
        weight = blocks.load(self._file, tensor)
        added = np.float32(self._architecture.norms_added)
        if added and name.endswith("norm.weight") and isinstance(weight, Dense):
            # What converters fold into a norm, builders add themselves.
            return Dense(weight.shape, weight.dtype, lambda: weight.numpy() - added)
        if not self._architecture.permuted or ".self_attn." not in name:
            return weight
        if ".q_proj." in name:
            return _unpermuted(weight, self.config["num_attention_heads"])
        if ".k_proj." in name:
            return _unpermuted(weight, self.config["num_key_value_heads"])
        return weight

    def text_files(self) -> TextFiles:
        from edgellm_export.checkpoint.gguf_tokenizer import build_text_files

        return build_text_files(self._file.metadata)


def _unpermuted(weight: Weight, heads: int) -> Weight:
    index = half_split_order(weight.shape[0], heads)
    if isinstance(weight, Blocks):
        return weight.rows(index)
    return Dense(weight.shape, weight.dtype, lambda: weight.numpy()[index])


def half_split_order(rows: int, heads: int) -> NDArray[np.intp]:
    """For each of Hugging Face's rows of q or k, the row of GGUF that holds it.

    GGUF has the two halves of a head interleaved; `permute` in llama.cpp's convert_hf_to_gguf.py
    does that with reshape(heads, 2, width / 2).swapaxes(1, 2), and this is its inverse.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _notices(tensors: Sequence[container.Tensor]) -> list[str]:
    counts = Counter(t.kind for t in tensors if not blocks.is_exact(t))
    lines = [
        f"{count} tensors of type {kind} are dequantized: not carried over exactly"
        for kind, count in sorted(counts.items())
    ]
    matrices = [t for t in tensors if t.kind in FORMATS and len(t.shape) == 2]
    for kind, one in sorted({t.kind: t for t in matrices}.items()):
        theirs, ours = blocks.bits_a_weight(one)
        if ours > 1.01 * theirs:
            count = sum(t.kind == kind for t in matrices)
            lines.append(
                f"{count} tensors of type {kind} are carried over exactly and take {ours:.1f} bits "
                f"a weight, {ours / theirs:.1f} times the {theirs:.1f} in the file"
            )
    return lines
