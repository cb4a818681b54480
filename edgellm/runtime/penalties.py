"""Penalties on raw logits for tokens the context already holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.stream import Sampling

Float32 = NDArray[np.float32]
Penalise = Callable[[Float32, Sequence[int]], Float32]

LARGEST = float(np.finfo(np.float32).max)


def make_penalties(s: Sampling) -> Penalise | None:
    """A function (logits (V,), context ids) -> penalised copy (V,); None when all are neutral.

    Each distinct token of the last `penalty_window` ids pays once: the repeat penalty divides a
    positive logit and multiplies a negative one, then presence and count * frequency are taken
    off. Order and formula are llama.cpp's (llama_sampler_penalties_apply in llama-sampler.cpp).
    """
    if s.repeat_penalty == 1 and s.presence_penalty == 0 and s.frequency_penalty == 0:
        return None

    def penalise(logits: Float32, context_ids: Sequence[int]) -> Float32:
        # A slice from -0 is the whole context, which is what a window of 0 means.
        seen = Counter(context_ids[-s.penalty_window :])
        ids = np.fromiter(seen.keys(), np.intp, len(seen))
        counts = np.fromiter(seen.values(), np.float64, len(seen))
        # Ids beyond the logits (tokens added after training) can never be chosen.
        known = ids < logits.size
        ids, counts = ids[known], counts[known]
        # float64, so that no product of a float32 and a penalty overflows.
        values = logits[ids].astype(np.float64)
        values = np.where(values > 0, values / s.repeat_penalty, values * s.repeat_penalty)
        values -= counts * s.frequency_penalty + s.presence_penalty
        penalised = logits.copy()
        # Only finite values are clipped: -inf stays forbidden, NaN and +inf stay visible faults.
        penalised[ids] = np.where(np.isfinite(values), values.clip(-LARGEST, LARGEST), values)
        return penalised

    return penalise
