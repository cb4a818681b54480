"""How much the whole model suffers when one of its matrices is rounded: measured, not assumed.

    calibration windows ─▶ the model as it is ─▶ inputs x of each product, logits
    one matrix at a time: the error x (Ŵ - W)ᵀ is added to its outputs ─▶ KL of the logits

With all else as it is, x is the same whether the matrix is rounded or not, so that what is added is
what rounding it would do; the graph and its weights stay as they are. Each result is kept at once,
so a second run resumes.
Shapes: T tokens, R of them whose logits are compared, N outputs and K inputs of a matrix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx_ir import ExternalTensor

from edgellm_export import io
from edgellm_export.graph import EXACT, FLOAT, Attribute, Graph, Value
from edgellm_export.quantize.capture import (
    PRODUCTS,
    Clock,
    Ids,
    Model,
    Notice,
    native_feeds,
    open_graph,
)
from edgellm_export.weights import Float32

# A trial is round to nearest at 4 bits in blocks of 64, min to max: quickly made for any matrix.
TRIAL_TOP, TRIAL_BLOCK = 15, 64
# Each matrix costs a forward pass over so many tokens.
WINDOWS, WINDOW_TOKENS, ROWS = 1, 192, 144
TABLES = ("GatherBlockQuantized", "Gather")
Feeds = dict[str, NDArray[Any]]


def trial_error(weight: Float32) -> Float32:
    """Ŵ - W (N, K) of plain rounding between each block's least and largest value."""
    blocks = weight.reshape(-1, math.gcd(weight.shape[1], TRIAL_BLOCK))
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    step = np.maximum((high - low) / np.float32(TRIAL_TOP), np.float32(1e-8))
    error: Float32 = np.rint((blocks - low) / step) * step + low - blocks
    return error.reshape(weight.shape)


def lookup_of(name: str) -> str:
    """What the rows taken from the matrix `name` are called."""
    return f"{name}.rows"


def measure(
    model: Model, weight: Callable[[str], Float32], ids: Ids, kept: Path, notice: Notice
) -> dict[str, float]:
    """Mean KL in nats a token for each matrix rounded alone by `trial_error`; for a tied embedding
    also, under `lookup_of` its name, that of rounding only where rows are taken from it.

    `kept` is a JSON file with what an earlier run has found, and with everything at the end.
    """
    found: dict[str, float] = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    missing = [name for name in model.matrices if name not in found]
    if not missing:
        return found
    bench = _Bench(model, ids[:WINDOWS, :WINDOW_TOKENS])
    clock = Clock(len(missing), notice, "measuring what each matrix matters")
    for name in missing:
        error, sites = trial_error(weight(name)), bench.sites(name)
        found[name] = bench.kl(name, error, sites)
        if len(sites) > 1:
            found[lookup_of(name)] = bench.kl(name, error, [lookup_of(name)])
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(kept)
        clock.tick()
    return found


class _Noisy(Graph):
    """A graph that adds an input of its own to what each matrix computes.

    `errors` are the names of these inputs by matrix: one where a product reads it, one where rows
    are taken from it, both for a tied embedding. `read` is what a product multiplies. Activations
    stay float32: rounded to int8, their own error (a KL of 0.004) would hide that of most matrices.
    """

    def __init__(self, model: Model) -> None:
        super().__init__("sensitivity", model.data.name, EXACT)
        self._matrix = {matrix.values.offset: name for name, matrix in model.matrices.items()}
        self._dtype = {name: matrix.values.dtype for name, matrix in model.matrices.items()}
        self._later: dict[Value, str] = {}
        self.read: dict[str, Value] = {}
        self.errors: dict[str, list[str]] = {}

    def ops(
        self, op_type: str, *inputs: Value | None, outputs: int, **attributes: Attribute
    ) -> Sequence[Value]:
        made = super().ops(op_type, *inputs, outputs=outputs, **attributes)
        if op_type in PRODUCTS and (name := self._of(inputs[1])) and inputs[0] is not None:
            self.read[name] = inputs[0]
            return [self._disturbed(made[0], name, "product")]
        if op_type in TABLES and (name := self._of(inputs[0])):
            if op_type == "GatherBlockQuantized" or self._dtype[name] == np.float32:
                return [self._disturbed(made[0], name, "rows")]
            self._later[made[0]] = name  # disturbed once it is float32
        if op_type == "Cast" and inputs[0] in self._later:
            return [self._disturbed(made[0], self._later[inputs[0]], "rows")]
        return made

    def _of(self, weight: Value | None) -> str | None:
        """The matrix whose bytes `weight` is, cast or not."""
        if weight is None:
            return None
        producer = weight.producer()
        if producer is not None and producer.op_type == "Cast":
            return self._of(producer.inputs[0])
        where = weight.const_value
        return self._matrix.get(where.offset or 0) if isinstance(where, ExternalTensor) else None

    def _disturbed(self, value: Value, name: str, site: str) -> Value:
        error = self.input(f"{name}.{site}", FLOAT, (1, f"{name}.{site}.T", f"{name}.{site}.N"))
        self.errors.setdefault(name, []).append(str(error.name))
        return self.op("Add", value, error)

    def taps(self) -> dict[str, Value]:
        """What products read, as outputs by the names of these, beside the logits."""
        logits = next(value for value in self._outputs if value.name == "logits")
        taps = {name: self.op("Identity", value) for name, value in self.read.items()}
        for name, value in taps.items():
            self.output(f"{name}.input", value, FLOAT, (1, f"{name}.input.T", f"{name}.input.K"))
        self.keep_only([logits, *taps.values()])
        return taps


class _Bench:
    """The model as it is, ready to be disturbed at one matrix."""

    def __init__(self, model: Model, ids: Ids) -> None:
        graph = _Noisy(model)
        inputs = io.native(graph)
        model.architecture.build(graph, inputs, model.weights)
        names = list(graph.taps())
        path = model.data.with_name("sensitivity.onnx")
        graph.save(path)
        self._errors = graph.errors
        self._session = open_graph(path)
        self._still = np.zeros((1, 1, 1), np.float32)
        self._windows = []
        for row in ids:
            feeds = self._feeds(model, row)
            logits, *read = self._session.run(["logits", *(f"{n}.input" for n in names)], feeds)
            inputs_of = {name: x[0] for name, x in zip(names, read, strict=True)}
            self._windows.append((row, feeds, inputs_of, log_softmax(logits[0])))

    def _feeds(self, model: Model, row: Ids) -> Feeds:
        count, shape = len(row), model.shape
        past = np.zeros((1, shape.num_key_value_heads, count, shape.head_dim), np.float32)
        feeds: Feeds = {
            value.name: past
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values")
        }
        feeds |= {name: self._still for names in self._errors.values() for name in names}
        return feeds | {
            **native_feeds(shape, row),
            "logit_rows": np.linspace(count // 4, count - 1, min(ROWS, count), dtype=np.int64),
        }

    def sites(self, name: str) -> list[str]:
        """Where the matrix is read."""
        return self._errors.get(name, [])

    def kl(self, name: str, error: Float32, sites: Sequence[str]) -> float:
        """Mean over all windows when the weights `name` are wrong by `error` (N, K) at `sites`."""
        found = []
        for row, feeds, read, expected in self._windows:
            wrong: Feeds = {}
            for site in sites:
                rows = site == lookup_of(name)
                wrong[site] = (error[row] if rows else read[name] @ error.T)[None]
            (logits,) = self._session.run(["logits"], feeds | wrong)
            logprobs = log_softmax(logits[0])
            found.append(np.einsum("rv,rv->r", np.exp(expected), expected - logprobs))
        return max(float(np.mean(np.concatenate(found), dtype=np.float64)), 0.0)


def log_softmax(logits: Float32) -> Float32:
    """Natural-log probabilities (R, V)."""
    shifted: Float32 = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
