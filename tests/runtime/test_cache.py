"""The KV cache: sized from what is asked for, grown without loss, rolled back by a length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.bundle.manifest import Shape
from edgellm.runtime.cache import STEP_TOKENS, KVCache

LAYERS, KV_HEADS, WIDTH = 3, 2, 8
SHAPE = Shape("llama", LAYERS, 4, KV_HEADS, WIDTH, 32, 100, 4096, 1000)


@pytest.mark.parametrize(
    ("asked", "capacity"),
    [(1, 64), (63, 64), (64, 64), (65, 128), (1000, 1024)],
)
def test_a_cache_is_as_large_as_asked_in_steps(asked: int, capacity: int) -> None:
    cache = KVCache(SHAPE, asked)
    assert STEP_TOKENS == 64
    assert cache.capacity == capacity
    assert len(cache.buffers) == 2 * LAYERS
    assert {buffer.shape for buffer in cache.buffers} == {(1, KV_HEADS, capacity, WIDTH)}
    assert {buffer.dtype for buffer in cache.buffers} == {np.dtype(np.float32)}
    assert cache.nbytes == 2 * LAYERS * KV_HEADS * capacity * WIDTH * 4
    assert len(cache) == 0


def test_growing_keeps_what_is_stored_and_says_that_the_buffers_moved() -> None:
    cache = KVCache(SHAPE, 10)
    cache.tokens = list(range(10))
    for i, buffer in enumerate(cache.buffers):
        buffer[:, :, :10] = i + np.arange(10)[:, None]
    cache.reserve(64)
    assert cache.generation == 0
    before = [buffer[:, :, :10].copy() for buffer in cache.buffers]
    cache.reserve(65)
    assert (cache.capacity, cache.generation) == (128, 1)
    assert cache.tokens == list(range(10))
    for old, new in zip(before, cache.buffers, strict=True):
        assert np.array_equal(new[:, :, :10], old)
        assert not new[:, :, 10:].any()


def test_a_cache_never_shrinks() -> None:
    cache = KVCache(SHAPE, 500)
    cache.reserve(3)
    assert (cache.capacity, cache.generation) == (512, 0)


@pytest.mark.parametrize(
    ("stored", "wanted", "common"),
    [
        ([], [1, 2], 0),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 2, 9, 4], 2),
        ([1, 2, 3], [7], 0),
        # The last token of a prompt is always computed: its logits are wanted.
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 1),
        ([1, 2, 3], [1], 0),
    ],
)
def test_a_cache_keeps_what_two_prompts_share(
    stored: list[int], wanted: list[int], common: int
) -> None:
    cache = KVCache(SHAPE, 8)
    cache.tokens = list(stored)
    assert cache.keep_common(wanted) == common
    assert cache.tokens == wanted[:common]


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), min_size=1))
def test_what_is_kept_is_a_prefix_of_both_and_cannot_be_longer(
    stored: list[int], wanted: list[int]
) -> None:
    cache = KVCache(SHAPE, 12)
    cache.tokens = list(stored)
    kept = cache.keep_common(wanted)
    assert cache.tokens == stored[:kept] == wanted[:kept]
    assert kept < len(wanted)
    if kept < min(len(stored), len(wanted) - 1):
        assert stored[kept] != wanted[kept]
