"""Which of ONNX Runtime's CPU kernels for attention a session gets.

Its default works tile by tile on float32 caches, and on one new token with a loop that the compiler
may not widen. The older kernel keeps all scores and calls MLAS, which for one row and a scale of 1
(edgellm_export.blocks) has a kernel of its own. Measured on 2 Zen 4 cores, 9 heads of 64 on 3: one
token behind 576 others 1.1 to 1.9 ms for 30 layers instead of 2.5 to 3.5, behind 7,900 others 19
instead of 25 to 48; chunks of 128 tokens 10 to 30 % faster at every depth.

Source: GroupQueryAttention reads the variable when its node is made (onnxruntime 1.31.1,
contrib_ops/cpu/bert/group_query_attention.cc).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from edgellm.bundle.manifest import Shape
from edgellm.runtime.decode import CHUNK_TOKENS

VARIABLE = "ORT_GQA_DISABLE_FLASH_ATTENTION"
# Scores of a whole context that are kept, at most: 38 MB for 9 heads and 8,192 positions. Larger
# models pay less for the slower kernel beside their products.
SCORES_LIMIT_BYTES = 64e6


def keeps_scores(shape: Shape) -> bool:
    """Whether sessions of this shape keep all scores of a chunk."""
    return score_bytes(shape, CHUNK_TOKENS) * shape.context_length <= SCORES_LIMIT_BYTES


def score_bytes(shape: Shape, chunk_tokens: int) -> int:
    """What they keep of a chunk for each position of the cache, float32."""
    return 4 * shape.num_attention_heads * chunk_tokens


@contextmanager
def whole_scores(shape: Shape) -> Iterator[None]:
    """Sessions made inside keep all scores of a chunk, where the memory plan has room for them.

    What the user's environment says is left as it is.
    """
    if VARIABLE in os.environ or not keeps_scores(shape):
        yield
        return
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
