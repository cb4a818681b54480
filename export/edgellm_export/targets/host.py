"""A host of the graphs for NPUs (see qnn): it keeps the cache, the masks and the positions.

What an app does around these graphs, in numpy alone, so that it also runs where edgellm does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Far below any score, and still a float16.
MASKED = -30000.0
Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Host:
    """`inputs` are names and shapes of each graph, by name; `run` runs one on a feed."""

    def __init__(
        self, inputs: Mapping[str, Mapping[str, Sequence[int]]], run: Mapping[str, Run]
    ) -> None:
        self._inputs, self._run = inputs, run
        self.length = 0
        self.cache = {
            name: np.zeros(shape, np.float32)
            for name, shape in inputs["qnn_decode"].items()
            if name.startswith("past_key_values.")
        }
        self.capacity = next(iter(self.cache.values())).shape[2]
        self.chunk = inputs["qnn_prefill"]["hidden"][1]

    def prompt(self, ids: Sequence[int]) -> Array:
        """Logits (V,) after the last of `ids`."""
        for start in range(0, len(ids) - 1, self.chunk):
            self._step("qnn_prefill", ids[start : min(start + self.chunk, len(ids) - 1)])
        return self.token(ids[-1])

    def token(self, token: int) -> Array:
        """Logits (V,) after one more token."""
        logits: Array = self._step("qnn_decode", [token])["logits"][0, 0]
        return logits

    def _step(self, name: str, ids: Sequence[int]) -> Mapping[str, Array]:
        wanted = self._inputs[name]
        width, new = wanted["hidden"][1], len(ids)
        padded = np.array([[*ids, *[0] * (width - new)]])
        positions = np.minimum(np.arange(self.length, self.length + width), self.capacity - 1)
        rows = self._run["qnn_embed"]({"input_ids": padded, "positions": positions[None]})
        feed = {"hidden": rows["hidden"], **self.cache}
        feed |= {key.removeprefix("rows."): rows[key] for key in rows if key.startswith("rows.")}
        feed |= {key: self._mask(key, width) for key in wanted if key.startswith("mask")}
        found = self._run[name]({key: feed[key] for key in wanted})
        for key, value in found.items():
            if key.startswith("new."):
                kept = self.cache["past_key_values." + key.removeprefix("new.")]
                kept[:, :, self.length : self.length + new] = value[:, :, :new]
        self.length += new
        return found

    def _mask(self, name: str, width: int) -> Array:
        """(1, 1, T, P + T): the cache up to the present length, then the tokens before."""
        at = self.length + np.arange(width)
        keys = np.concatenate([np.arange(self.capacity), at])
        valid = np.concatenate([np.arange(self.capacity) < self.length, np.ones(width, bool)])
        seen = valid & (keys <= at[:, None])
        if name != "mask":
            seen &= keys > at[:, None] - int(name.removeprefix("mask_"))
        return np.where(seen, 0, MASKED).astype(np.float32)[None, None]
