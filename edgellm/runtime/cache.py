"""The KV cache: keys and values of the tokens already seen, in buffers we own.

The graph reads and writes the same memory, so appending copies nothing, rolling back is setting a
length, and two prompts share what they begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle.manifest import Shape

# Buffers grow to a multiple of this, so that a conversation rarely copies them.
STEP_TOKENS = 64


class KVCache:
    """`tokens` are the ids whose keys and values are stored; `buffers` alternate key, value of
    each layer, (1, K, capacity, N) of the shape's `kv_dtype`. `generation` changes when the
    buffers move. `rope_offset`: the row of the rotary table at which position 0 was when they were
    made."""

    def __init__(self, shape: Shape, capacity_tokens: int) -> None:
        self._shape = shape
        self.tokens: list[int] = []
        self.generation = 0
        self.rope_offset = 0
        self.capacity = -(-capacity_tokens // STEP_TOKENS) * STEP_TOKENS
        self.buffers = self._allocate()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def reserve(self, capacity_tokens: int) -> None:
        """Room for that many tokens in all; what is stored stays."""
        if capacity_tokens <= self.capacity:
            return
        self.capacity = -(-capacity_tokens // STEP_TOKENS) * STEP_TOKENS
        old, self.buffers = self.buffers, self._allocate()
        for before, after in zip(old, self.buffers, strict=True):
            after[:, :, : len(self)] = before[:, :, : len(self)]
        self.generation += 1

    def keep_common(self, ids: Sequence[int]) -> int:
        """How many leading tokens of `ids` are stored already; what follows them is forgotten.

        The last of `ids` never counts: its logits have to be computed.
        """
        common = 0
        for mine, wanted in zip(self.tokens, ids[:-1], strict=False):
            if mine != wanted:
                break
            common += 1
        del self.tokens[common:]
        return common

    def _allocate(self) -> list[NDArray[Any]]:
        s = self._shape
        shape = (1, s.num_key_value_heads, self.capacity, s.head_dim)
        # Zeroed pages cost nothing until they are written.
        return [np.zeros(shape, s.kv_dtype) for _ in range(2 * s.num_hidden_layers)]
