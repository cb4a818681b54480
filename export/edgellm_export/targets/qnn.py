"""Graphs of fixed shapes for Qualcomm's NPUs (QNN), over the data file of the bundle.

    qnn_embed    ids and positions → rows of the embedding and of the rotary tables; for the CPU
    qnn_prefill  CHUNK_TOKENS rows, the cache → keys and values of each; no logits
    qnn_decode   one row, the cache → its keys and values, and logits

A host keeps the cache, (1, K, P, N) a layer and part, and copies `new.*` into it. It feeds prompts
in chunks, the last token of a prompt to `qnn_decode`. What lies beyond the valid positions is
masked. `host` does all that in numpy.

Compiled ahead of time for a chip, or run on the emulator on an x86-64 Linux, by the package
onnxruntime-qnn; tests/targets/test_qnn.py does both. It takes MatMulNBits, whose blocks stay
packed, and computes in float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.bundle.manifest import Shape
from edgellm.errors import EdgellmError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm_export import io, static
from edgellm_export.drawing import Model
from edgellm_export.graph import EXACT, INT64, Graph
from edgellm_export.linear import Matrix, embedding
from edgellm_export.quantize.capture import open_graph
from edgellm_export.static import Static
from edgellm_export.targets import host

CHUNK_TOKENS = 64
CONTEXT_TOKENS = 1024
# The check feeds a full chunk, a part of one, and single tokens.
PROBE_DECODED = 3
# Relative to the largest logit: float32 sums in another order.
LIMIT = 1e-3


def draw(model: Model, suffix: str, context: int = CONTEXT_TOKENS) -> dict[str, Path]:
    """The three graphs by name, written beside the data file.

    The cache has `context` positions, at most the model's own. Incompatible when the weights are in
    blocks that an NPU has no product for.
    """
    context = min(context, model.shape.context_length)
    chunk = min(CHUNK_TOKENS, context)
    decode = _static(model, "qnn_decode", 1, context)
    prefill = _static(model, "qnn_prefill", chunk, context)
    prefill.keep_only([value for value in prefill.outputs if value.name != "logits"])
    graphs = (_embed(model, "qnn_embed", decode), prefill, decode)
    names = ("qnn_embed", "qnn_prefill", "qnn_decode")
    paths = {name: model.data.parent / f"{name}{suffix}.onnx" for name in names}
    for g, path in zip(graphs, paths.values(), strict=True):
        g.save(path)
    return paths


def check(paths: Mapping[str, Path], exact: Path, shape: Shape) -> float:
    """How much the graphs differ, on the CPU, from the bundle's `exact` graph; EdgellmError when
    that is more than another order of sums explains."""
    sessions = {name: open_graph(path) for name, path in paths.items()}
    inputs = {
        name: {value.name: value.shape for value in session.get_inputs()}
        for name, session in sessions.items()
    }
    running = host.Host(inputs, {name: _runner(session) for name, session in sessions.items()})
    count = min(running.chunk + running.chunk // 2, running.capacity - PROBE_DECODED)
    ids = (np.arange(count + PROBE_DECODED) * 7919 % shape.vocab_size).tolist()
    plain = replace(shape, kv_dtype="float32")
    rows = range(count - 1, len(ids))
    cache = KVCache(plain, len(ids))
    wanted = Session(exact, plain, LoadOptions()).forward(ids, rows, cache)
    found = [running.prompt(ids[:count]), *(running.token(token) for token in ids[count:])]
    error = float(np.abs(np.stack(found) - wanted).max() / np.abs(wanted).max())
    if not error <= LIMIT:  # also NaN
        raise EdgellmError(
            f"the graphs for NPUs differ by {error:.3g} of the largest logit, allowed is "
            f"{LIMIT:g}; nothing was published; leave out --qnn"
        )
    return error


def _runner(session: Any) -> host.Run:
    names = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _static(model: Model, name: str, tokens: int, past: int) -> Graph:
    g = Graph(name, model.data.name, EXACT)
    inputs = io.static(g, tokens, past, model.shape.hidden_size)
    model.architecture.build(g, inputs, model.weights)
    return g


def _embed(model: Model, name: str, decode: Graph) -> Graph:
    """What `decode` wants to be fed, from ids and positions (1, T)."""
    g = Graph(name, model.data.name, EXACT)
    table: Matrix = model.weights.embedding
    shape = (1, "tokens")
    ids, positions = (g.input(what, INT64, shape) for what in ("input_ids", "positions"))
    g.output("hidden", embedding(g, ids, table), static.FLOAT, (*shape, model.shape.hidden_size))
    known: Static | None = decode.static
    for stored in (known.ropes if known else {}).values():
        rows = g.op("Gather", g.weight(stored), positions)
        g.output(f"rows.{stored.name}", rows, static.FLOAT, (*shape, stored.shape[1]))
    return g
