"""What leaving something out of a model changes, measured on calibration text.

    checkpoint ─ exact import ─▶ graph with a switch for each layer ─ windows ─▶ logits, influence

The whole model's logits are the teacher's: what is left of a model is judged by its KL divergence
from them. Training that brings a smaller model back towards its teacher (Hinton et al.,
arXiv:1503.02531) takes its targets from `Switched.teacher` and `divergence` as its loss.
Shapes: L layers, T tokens of a window, R logit rows, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgellm.errors import Incompatible
from edgellm_export import arch, io
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile
from edgellm_export.graph import FAST, FLOAT, Graph, Value
from edgellm_export.quantize import selftext
from edgellm_export.quantize.capture import (
    Ids,
    Model,
    Notice,
    empty_cache,
    native_feeds,
    open_graph,
)
from edgellm_export.recipe import recipe
from edgellm_export.store import WeightStore
from edgellm_export.weights import Float32

WINDOWS, WINDOW_TOKENS = 2, 256
# Logits of every fourth token: a quarter of the work, and neighbours say much the same.
ROW_STEP = 4


def imported(checkpoint: Checkpoint, folder: Path) -> Model:
    """The checkpoint with its own weights in the existing `folder`, ready to be drawn."""
    architecture = arch.find(checkpoint.config["model_type"])
    with DataFile(folder / "weights.data") as data:
        store = WeightStore(checkpoint, recipe("exact"), data)
        weights = architecture.store(store)
    model = Model(architecture, weights, data.path, store.matrices)
    write_configs(folder, checkpoint, model.shape, "onnx/model.onnx", {})
    return model


def windows(model: Model, text: str | None, count: int, notice: Notice) -> Ids:
    """Ids (`count` windows at most, T) of `text`, None: in the model's own words.

    UsageError when the text is shorter than a window.
    """
    folder, length = model.data.parent, min(WINDOW_TOKENS, model.shape.context_length)
    if text is not None:
        return selftext.windows_of(folder, text, count * length, length)
    g = Graph("write", model.data.name, FAST)
    model.architecture.build(g, io.portable(g), model.weights)
    g.save(folder / "write.onnx")
    start = selftext.openings(folder, selftext.ends(folder))
    size = (count, length)
    return selftext.generate(folder / "write.onnx", model.shape, start, size, 0, notice)


class Switched:
    """A model each of whose layers can be left out of a pass; it is loaded once.

    `teacher`: log probabilities (windows, R, V) of the whole model on `ids`.
    `influence`: of each layer, 1 - the mean cosine between what goes in and what comes out (Men et
    al., arXiv:2403.03853).
    """

    def __init__(self, model: Model, ids: Ids) -> None:
        self.layers = model.shape.num_hidden_layers
        path = model.data.with_name("switched.onnx")
        taps = _draw(model, path)
        self._session = open_graph(path)
        self._empty: dict[str, Any] = empty_cache(self._session, model.shape)
        self._shape, self._ids = model.shape, ids
        streams = [self._run(row, (), taps) for row in ids]
        self.teacher = np.stack([log_softmax(found[0]) for found in streams])
        self.influence = _influence([found[1:] for found in streams])

    def divergence(self, dropped: Collection[int]) -> float:
        """Mean KL from the teacher, in nats a token, without the layers `dropped`."""
        found = [self._run(row, dropped, ["logits"])[0] for row in self._ids]
        return divergence(self.teacher, np.stack([log_softmax(one) for one in found]))

    def _run(self, ids: Ids, dropped: Collection[int], names: Sequence[str]) -> list[Float32]:
        feed: Mapping[str, Any] = {
            **self._empty,
            **native_feeds(self._shape, ids),
            "logit_rows": np.arange(0, len(ids), ROW_STEP),
            "switches": np.array([i not in dropped for i in range(self.layers)], np.float32),
        }
        return [array[0] for array in self._session.run(list(names), feed)]


def teacher_of(checkpoint: Checkpoint, ids: Ids, folder: Path) -> Float32:
    """Log probabilities (windows, R, V) of a checkpoint; `folder` exists and is empty."""
    return Switched(imported(checkpoint, folder), ids).teacher


def divergence(teacher: Float32, student: Float32) -> float:
    """Mean KL(teacher ‖ student) in nats of two arrays of log probabilities (…, V)."""
    each = (np.exp(teacher) * (teacher - student)).sum(axis=-1, dtype=np.float64)
    return float(each.mean())


def log_softmax(logits: Float32) -> Float32:
    shifted: Float32 = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _draw(model: Model, path: Path) -> list[str]:
    """Writes the graph with an input `switches` (L,); what to fetch for logits and streams.

    A layer adds to the residual stream twice, after attention and after its MLP. Both sums get a
    factor of 1 or 0, so that a layer switched off is one that is not there.
    """
    g = Graph("switched", model.data.name, FAST)
    model.architecture.build(g, io.native(g), model.weights)
    sums, layers = _sums(g), model.shape.num_hidden_layers
    if len(sums) != 2 * layers:
        raise Incompatible(
            f"the layers of {model.shape.architecture} cannot be told apart; leave out "
            "--drop-layers and --mlp-width"
        )
    switches = g.input("switches", FLOAT, (layers,))
    names = ["logits"]
    for i, (node, branch, residual, total) in enumerate(sums):
        if i % 2 == 0:
            names.append(_tap(g, f"stream.{i // 2}.in", residual))
        else:
            names.append(_tap(g, f"stream.{i // 2}.out", total))
        switch = g.op("Gather", switches, g.constant(np.array([i // 2], np.int64)))
        node.replace_input_with(branch, g.op("Mul", _input(node, branch), switch))
    g.save(path)
    return names


def _tap(g: Graph, name: str, value: Value) -> str:
    g.output(name, g.op("Identity", value), FLOAT, (1, f"{name}.rows", f"{name}.width"))
    return name


def _sums(g: Graph) -> list[tuple[ir.Node, int, Value, Value]]:
    """Where something joins the residual stream: node, the input that joins, stream before, after.

    Most architectures add and normalise in one node; OLMo 2 normalises first.
    """
    found = []
    for node in g.nodes:
        if node.op_type == "SkipSimplifiedLayerNormalization":
            found.append((node, 0, _input(node, 1), node.outputs[3]))
        elif node.op_type == "Add":
            producer = _input(node, 1).producer()
            if producer is not None and producer.op_type == "SimplifiedLayerNormalization":
                found.append((node, 1, _input(node, 0), node.outputs[0]))
    return found


def _input(node: ir.Node, index: int) -> Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    return value


def _influence(streams: Sequence[Sequence[Float32]]) -> list[float]:
    """By layer, from windows of streams: in and out of layer 0, in and out of layer 1, …"""
    found = []
    for i in range(0, len(streams[0]), 2):
        near = [_cosine(window[i], window[i + 1]) for window in streams]
        found.append(1 - float(np.mean(near)))
    return found


def _cosine(a: Float32, b: Float32) -> float:
    """Mean cosine of the rows of two arrays (T, D)."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(axis=-1) / np.maximum(lengths, np.finfo(np.float32).tiny)).mean())
