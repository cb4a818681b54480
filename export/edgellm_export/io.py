"""The inputs and outputs of the two decoder graphs. Everything between is the architecture's.

portable  input_ids, attention_mask, past_key_values.* → logits of every token, present.*
native    input_ids, last_position, total_positions, logit_rows, past_key_values.* → logits of the
          chosen rows only, present.*; batch 1
static    for NPUs: hidden, mask*, rope*, past_key_values.* → logits, new.*; see `static`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm_export.blocks import Position
from edgellm_export.graph import FLOAT, INT32, INT64, Graph, Value
from edgellm_export.static import Static


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an architecture needs to know of the graph it is built into.

    `rows` are the positions among the new tokens whose logits are wanted; None: all of them.
    """

    ids: Value
    position: Position
    rows: Value | None


def portable(g: Graph) -> Inputs:
    """Standard inputs, right-padded batches; see the loaders' rules in the bundle's contract."""
    # The WebAssembly build that transformers.js loads has no GatherBlockQuantized for the CPU.
    g.spell_embedding = True
    ids = g.input("input_ids", INT64, ("batch_size", "sequence_length"))
    mask = g.input("attention_mask", INT64, ("batch_size", "total_sequence_length"))
    one = g.constant(np.array([1], np.int64))
    count = g.op("Sub", g.op("ReduceSum", mask, one, keepdims=0), one)
    total = g.op("Gather", g.op("Shape", mask), g.constant(np.array(1, np.int64)))
    position = Position(g.op("Cast", count, to=int(INT32)), g.op("Cast", total, to=int(INT32)))
    return Inputs(ids, position, None)


def native(g: Graph) -> Inputs:
    """Positions and logit rows as plain inputs: nothing is computed from a mask."""
    ids = g.input("input_ids", INT64, (1, "sequence_length"))
    last = g.input("last_position", INT32, (1,))
    total = g.input("total_positions", INT32, ())
    rows = g.input("logit_rows", INT64, ("rows",))
    return Inputs(ids, Position(last, total), rows)


def static(g: Graph, tokens: int, past: int, width: int) -> Inputs:
    """Rows of the embedding table instead of ids; masks and rotary rows join as they are used."""
    g.static = Static(tokens, past)
    rows = g.input("hidden", FLOAT, (1, tokens, width))
    # Nothing counts positions in such a graph: masks and rotary rows know them.
    return Inputs(rows, Position(rows, rows), None)


def asked_rows(g: Graph, inputs: Inputs, stream: Value) -> Value:
    """(1, T, …) to (1, R, …); as it is where all rows are wanted."""
    return stream if inputs.rows is None else g.op("Gather", stream, inputs.rows, axis=1)


def output_logits(g: Graph, inputs: Inputs, logits: Value, vocab_size: int) -> None:
    """The logits output, (B, T, V) or (1, rows, V)."""
    rows = "sequence_length" if inputs.rows is None else "rows"
    batch = "batch_size" if inputs.rows is None else 1
    shape = (1, g.static.tokens, vocab_size) if g.static else (batch, rows, vocab_size)
    g.output("logits", g.to(logits, FLOAT), FLOAT, shape)
