"""Memory bandwidth: what this machine reads in a second, and what a decoded token has to read.

Decoding reads every weight and the whole KV cache once a token, so bandwidth divided by those
bytes bounds its speed. Neither figure is perfect:

- numpy's maximum of a large array is as fast as a hand-written AVX-512 loop where both were tried
  (2 Zen 4 cores), but a device may have memory that only its GPU or more threads can exhaust.
- Bytes a token are those the weights mean (integers, float32 scales, shifts, norms); kernels pack
  some padding beside them. A model that fits the last-level cache can exceed 100 %.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgellm.bench.speed import Row
from edgellm.bundle.manifest import Manifest
from edgellm.device import memory
from edgellm.errors import Corrupt
from edgellm.runtime.opened import OpenedBundle

# Larger than the last-level cache of any device this is for (server chips excepted).
BUFFER_BYTES = 256 << 20
# The best of so many: whatever else runs on the machine can only make a read slower.
TRIES = 5
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """`share` of the bandwidth that decoding used; None where nothing was decoded.

    `bytes_per_token` and `share` are those of the first decoding test.
    """

    measured_gb_s: float
    bytes_per_token: int | None
    share: float | None


def bandwidth(rows: list[Row], bundle: OpenedBundle, read_gb_s: float) -> Bandwidth:
    """What the first decoding test among `rows` took of a machine that reads `read_gb_s`."""
    row = next((row for row in rows if row.case.kind == "tg"), None)
    if row is None:
        return Bandwidth(read_gb_s, None, None)
    bytes_ = bytes_per_token(bundle.manifest, row.case.depth + row.case.tokens / 2, is_tied(bundle))
    return Bandwidth(read_gb_s, bytes_, bytes_ * row.tokens_per_s.median / (read_gb_s * 1e9))


def read_gb_s(threads: int, available_mb: float, tries: int = TRIES) -> float:
    """Gigabytes (1e9) a second that `threads` threads read from memory together.

    Takes 256 MiB, or a quarter of `available_mb` where that is less.
    """
    wanted = min(BUFFER_BYTES, int(available_mb * memory.MB / 4))
    buffer = np.ones(max(wanted // 4, threads), np.float32)
    parts = np.array_split(buffer, threads)
    best = float("inf")
    # numpy releases the interpreter's lock while it reduces.
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(tries):
            started = time.perf_counter()
            for _result in pool.map(np.max, parts):
                pass
            best = min(best, time.perf_counter() - started)
    return buffer.nbytes / best / 1e9


def bytes_per_token(manifest: Manifest, depth: float, tied: bool) -> int:
    """Bytes a decoded token reads: all weights, and keys and values of `depth` positions.

    Of an embedding that is not the head as well (`tied` False) one row is read, counted as none;
    its bytes are taken to be its share of the parameters.
    """
    shape, sizes = manifest.shape, manifest.weight_bytes
    if sizes:
        weights = float(sizes["codes"] + sizes["floats"] + sizes["dense"])
    else:
        data = {graph.data for graph in manifest.graphs.values()}
        weights = float(sum(manifest.files[name].bytes for name in data))
    if not tied:
        weights *= 1 - shape.vocab_size * shape.hidden_size / shape.parameters
    return round(weights + depth * memory.kv_bytes_per_token(shape))


def is_tied(bundle: OpenedBundle) -> bool:
    """Whether the embedding is the head as well; taken for granted when no config says.

    Corrupt when the config is not a JSON object.
    """
    if CONFIG not in bundle.manifest.files:
        return True
    path = bundle.folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not valid JSON: {error}; export the model again") from error
    if not isinstance(config, dict):
        raise Corrupt(f"{path} must hold a JSON object; export the model again")
    return bool(config.get("tie_word_embeddings"))
