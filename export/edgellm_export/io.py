"""The inputs and outputs of the two decoder graphs. Everything between is the architecture's.

portable  input_ids, attention_mask, past_key_values.* → logits of every token, present.*
native    input_ids, last_position, total_positions, logit_rows, past_key_values.* → logits of the
          chosen rows only, hidden_states of the probe layer, present.*; batch 1; rope_offset where
          long-rope has two tables
prefill   as native, but for logits and hidden_states: only present.*
static    for NPUs: hidden, mask*, rope*, past_key_values.* → logits, new.*; see `static`
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgellm.errors import Incompatible
from edgellm_export.blocks import Position
from edgellm_export.graph import FLOAT, INT32, INT64, Graph, Value
from edgellm_export.static import OPSET as STATIC_OPSET
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
    g.adapters = g.unit_scores = True
    ids = g.input("input_ids", INT64, (1, "sequence_length"))
    last = g.input("last_position", INT32, (1,))
    total = g.input("total_positions", INT32, ())
    rows = g.input("logit_rows", INT64, ("rows",))
    return Inputs(ids, Position(last, total), rows)


def prefill(g: Graph) -> Inputs:
    """As native, for the graph that fills the cache with a long prompt (prefill.draw)."""
    g.many_rows = True
    return native(g)


def static(g: Graph, tokens: int, past: int, width: int) -> Inputs:
    """Rows of the embedding table instead of ids; masks and rotary rows join as they are used."""
    g.static, g.opset = Static(tokens, past), STATIC_OPSET
    rows = g.input("hidden", FLOAT, (1, tokens, width))
    # Nothing counts positions in such a graph: masks and rotary rows know them.
    return Inputs(rows, Position(rows, rows), None)


def switched(g: Graph, inputs: Inputs, switch: int) -> Position:
    """The position with rows of a rotary table that has `switch` rows for short texts, and below
    them those for long ones, from position 0 again.

    Native: an input says where the table begins. A prompt that comes in chunks has to know of its
    end, and what is cached has to be made again (runtime.session). Portable: the total decides.
    Incompatible for NPUs: their hosts copy what is cached and cannot make it again.
    """
    if g.static:
        raise Incompatible("long-rope has two rotary tables, graphs for NPUs one; leave out --qnn")
    one, at = g.constant(np.array(1, np.int64)), inputs.position
    new = g.op("Gather", g.op("Shape", inputs.ids), one)
    last = g.op("Cast", at.last, to=int(INT64))
    first = g.op("Sub", g.op("Add", last, one), new)
    # Of a padded row of a first prompt the last token stands before the last position.
    first = g.op("Max", first, g.constant(np.array(0, np.int64)))
    zero = g.constant(np.array(0, np.int64))
    steps = g.op("Range", zero, new, one)
    if inputs.rows is not None:
        begin = g.input("rope_offset", INT64, ())
    else:
        limit, total = g.constant(np.array(switch, np.int64)), g.op("Cast", at.total, to=int(INT64))
        begin = g.op("Where", g.op("Greater", total, limit), limit, zero)
    column = g.op("Unsqueeze", g.op("Add", first, begin), g.constant(np.array([1], np.int64)))
    return replace(at, rows=g.op("Add", column, steps))


def asked_rows(g: Graph, inputs: Inputs, stream: Value) -> Value:
    """(1, T, …) to (1, R, …); as it is where all rows are wanted."""
    return stream if inputs.rows is None else g.op("Gather", stream, inputs.rows, axis=1)


def output_logits(g: Graph, inputs: Inputs, logits: Value, vocab_size: int) -> None:
    """The logits output, (B, T, V) or (1, rows, V)."""
    rows = "sequence_length" if inputs.rows is None else "rows"
    batch = "batch_size" if inputs.rows is None else 1
    shape = (1, g.static.tokens, vocab_size) if g.static else (batch, rows, vocab_size)
    g.output("logits", g.to(logits, FLOAT), FLOAT, shape)


def probe_layer(layers: int) -> int | None:
    """After how many of the `layers` hidden states are shown; None: a model of one layer has none.

    Two thirds: what correctness can be read from best in SmolLM2-135M (20 of 30), and near what
    probes of larger models found (Azaria and Mitchell, arXiv:2304.13734). Never the last layer,
    behind whose attention only the asked-for rows are computed.
    """
    return min(round(layers * 2 / 3), layers - 1) or None


def output_hidden(g: Graph, inputs: Inputs, layer: int, layers: int, stream: Value) -> None:
    """The residual stream (1, T, D) behind the probe layer is an output of the native graph.

    It costs no node: the value is there, in float32. To be called for each `layer`, from 0.
    """
    if inputs.rows is not None and layer + 1 == probe_layer(layers):
        shape = (1, "sequence_length", "hidden_size")
        g.output("hidden_states", g.to(stream, FLOAT), FLOAT, shape)
