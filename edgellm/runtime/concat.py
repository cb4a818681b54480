"""A graph that returns a longer cache at each step, instead of writing into ours.

    input_ids, attention_mask, position_ids, past_key_values.* ──▶ logits, present.*

That is how torch traces a decoder: present = past with the new tokens behind it. Appending copies
the cache, so long contexts are slower than on a shared one; everything else is as in `Session`.
Which inputs there are is read from the graph. Shapes: T new tokens, P tokens before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle.manifest import CONCAT, Graph, Shape
from edgellm.errors import Incompatible
from edgellm.runtime.adapter import Adapter
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import ROWS, Float32, Session, cannot_run

# What a decoder may ask for beside its cache.
KNOWN_INPUTS = ("input_ids", "attention_mask", "position_ids", ROWS)
PAST, PRESENT = "past_key_values.", "present."
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_graph(
    path: Path,
    graph: Graph,
    shape: Shape,
    options: LoadOptions,
    adapter: Adapter | None = None,
    prefill_graph: Path | None = None,
) -> Session:
    """The session for the cache that the graph has; errors as in Session."""
    if graph.cache == CONCAT:
        return ConcatSession(path, shape, options, adapter)
    return Session(path, shape, options, adapter, prefill_graph)


class ConcatCache(KVCache):
    """`past` are ONNX Runtime's own arrays, key and value of each layer, with `stored` tokens.

    Forgetting tokens shortens `tokens` only; the session cuts the arrays when it needs them.
    """

    def __init__(self, shape: Shape, capacity_tokens: int) -> None:
        super().__init__(shape, capacity_tokens)
        self.past: list[Any] = []
        self.stored = 0

    @property
    def nbytes(self) -> int:
        s = self._shape
        width = s.num_key_value_heads * s.head_dim * np.dtype(s.kv_dtype).itemsize
        return 2 * s.num_hidden_layers * width * self.stored

    def _allocate(self) -> list[NDArray[Any]]:
        return []  # the graph makes the arrays


class ConcatSession(Session):
    """A loaded graph whose cache grows by concatenation. See `Session`."""

    def __init__(
        self, graph: Path, shape: Shape, options: LoadOptions, adapter: Adapter | None = None
    ) -> None:
        super().__init__(graph, shape, options, adapter)
        self.shows_hidden = False
        inputs = {found.name: found.type for found in self._session.get_inputs()}
        self._past = [name for name in inputs if name.startswith(PAST)]
        self._present = [PRESENT + name.removeprefix(PAST) for name in self._past]
        self._asks = frozenset(inputs) - set(self._past)
        unknown = sorted(self._asks - set(KNOWN_INPUTS))
        missing = set(self._present) - {found.name for found in self._session.get_outputs()}
        if unknown or missing or not self._past:
            what = f"wants {unknown[0]}" if unknown else "has no growing cache"
            raise Incompatible(f"{graph} {what}, which this version cannot run; export it again")
        if len({inputs[name] for name in self._past} & DTYPES.keys()) != 1:
            raise Incompatible(f"{graph} has a cache of {inputs[self._past[0]]}; export it again")
        self._dtype = DTYPES[inputs[self._past[0]]]

    def new_cache(self, capacity_tokens: int) -> KVCache:
        return ConcatCache(self.shape, capacity_tokens)

    def forward(self, ids: Sequence[int], rows: Sequence[int], cache: KVCache) -> Float32:
        """As Session.forward; `cache` comes from `new_cache`."""
        if not isinstance(cache, ConcatCache):
            raise ValueError("this graph returns its cache: make one with session.new_cache")
        feed = self._feed(ids, rows, len(cache))
        feed |= dict(zip(self._past, self._cut(cache), strict=True))
        binding = self._session.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, value)
        for name in ("logits", *self._present):
            binding.bind_output(name, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise cannot_run(error) from error
        logits, *cache.past = binding.get_outputs()
        cache.tokens.extend(ids)
        cache.stored = len(cache)
        found: Float32 = logits.numpy()[0]
        return found[: len(rows)] if ROWS in self._asks else found[list(rows)]

    def _feed(self, ids: Sequence[int], rows: Sequence[int], past: int) -> dict[str, Any]:
        """What the graph asks for, but its cache."""
        total = past + len(ids)
        given: dict[str, NDArray[np.int64]] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None],
            # One row at least, as in Session.
            ROWS: np.array(rows or [0], np.int64),
        }
        return {name: self._value(given[name]) for name in self._asks}

    def _cut(self, cache: ConcatCache) -> list[Any]:
        """The arrays of exactly the cache's tokens."""
        keep = len(cache)
        if not cache.past:
            s = self.shape
            empty = np.zeros((1, s.num_key_value_heads, 0, s.head_dim), self._dtype)
            return [self._value(empty) for _ in self._past]
        if keep < cache.stored:
            # One array after the other: never a second whole cache.
            for i, value in enumerate(cache.past):
                cache.past[i] = self._value(np.ascontiguousarray(value.numpy()[:, :, :keep]))
            cache.stored = keep
        return cache.past

    def _value(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array)
