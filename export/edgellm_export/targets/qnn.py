"""Graphs of fixed shapes for Qualcomm's NPUs (QNN), over the data file of the bundle.

    qnn_embed    ids and positions → rows of the embedding and of the rotary tables; for the CPU
    qnn_prefill  CHUNK_TOKENS rows, the cache → keys and values of each; no logits
    qnn_decode   one row, the cache → its keys and values, and logits

A host keeps the cache, (1, K, P, N) a layer and part, and copies `new.*` into it. It feeds prompts
in chunks, the last token of a prompt to `qnn_decode`. What lies beyond the valid positions is
masked: 0 where a token may look, MASKED elsewhere.

Compiled ahead of time for a chip, or run on the emulator on an x86-64 Linux, by the package
onnxruntime-qnn; tests/targets/test_qnn.py does both. It takes MatMulNBits, whose blocks stay
packed, and computes in float16.
"""

from __future__ import annotations

from pathlib import Path

from edgellm_export import io, static
from edgellm_export.drawing import Model
from edgellm_export.graph import EXACT, INT64, Graph
from edgellm_export.linear import Matrix, embedding
from edgellm_export.static import Static

CHUNK_TOKENS = 64
CONTEXT_TOKENS = 1024
# Far below any score, and still a float16.
MASKED = -30000.0


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
