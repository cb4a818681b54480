"""What a model's matrices are fed: H = XᵀX per matrix, summed over calibration text.

    checkpoint ─ exact import ─▶ graph with the products' inputs as outputs ─ windows ─▶ Statistics

The graph is the exported one on the checkpoint's own weights; what no tapped value needs is left
out. Inputs are summed window by window and never kept. Layers go in groups whose sums fit
`GROUP_BYTES`; each sum becomes one file as soon as its group is done, so a second run resumes.

Besides verify the only module of the exporter that runs a model: activations come from nowhere
else. Shapes: T tokens, N outputs and K inputs of a matrix.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle.manifest import Shape
from edgellm.errors import EdgellmError, StorageFailed
from edgellm.runtime.session import load_onnxruntime
from edgellm_export import io
from edgellm_export.arch import Architecture
from edgellm_export.graph import FAST, FLOAT, Graph, Value
from edgellm_export.linear import Matrix
from edgellm_export.weights import Float32

Notice = Callable[[str], None]
Ids = NDArray[np.int64]
# Operators that multiply by a weight, which is their second input.
PRODUCTS = ("MatMulNBits", "FusedMatMul")
GROUP_BYTES = 1 << 30
# Seconds between two lines of progress.
REPORT_S = 10.0


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint imported as it is: its matrices by name, and what draws a graph of them."""

    architecture: Architecture
    weights: Any
    data: Path
    matrices: Mapping[str, Matrix]

    @property
    def shape(self) -> Shape:
        return self.architecture.shape(self.weights)


class Statistics:
    """H (K, K) by matrix name, read from `folder` one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unread: frozenset[str] = frozenset()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def __call__(self, name: str) -> Float32 | None:
        """The sum for that matrix; None for one that no product reads (an embedding table).

        StorageFailed when its file has gone.
        """
        if name in self.unread:
            return None
        try:
            total: Float32 = np.load(self.path(name), allow_pickle=False)
        except OSError as error:
            raise StorageFailed(
                f"cannot read the calibration statistics {self.path(name)}: "
                f"{error.strerror or error}; run the export again"
            ) from error
        return total


def key(*parts: object) -> str:
    """A folder name for the statistics of one checkpoint and one text."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def capture(model: Model, ids: Ids, folder: Path, notice: Notice) -> Statistics:
    """The statistics of `ids` (windows, T), in `folder`; files already there are not made again.

    EdgellmError when the model gives numbers that are not finite.
    """
    found = Statistics(folder)
    read = products(_drawn(model), model.matrices)
    found.unread = frozenset(model.matrices.keys() - read.keys())
    graph = model.data.with_name("capture.onnx")
    for group in _groups(model, found):
        _draw(model, group, graph)
        for name, total in _sum(graph, model.shape, ids, group, notice).items():
            if not np.isfinite(total).all():
                raise EdgellmError(
                    f"the inputs of {name} are not finite on the calibration text; "
                    "export without --calibrate"
                )
            save(found.path(name), total)
    return found


def save(path: Path, array: NDArray[Any]) -> None:
    """`array` as a .npy file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            np.save(file, array)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def products(g: Graph, matrices: Mapping[str, Matrix]) -> dict[str, Value]:
    """For each name of a matrix that `g` multiplies by, the value that it multiplies."""
    names = {matrix.values.name: name for name, matrix in matrices.items()}
    found: dict[str, Value] = {}
    for node in g.nodes:
        if node.op_type not in PRODUCTS:
            continue
        x, weight = node.inputs[0], node.inputs[1]
        producer = weight.producer() if weight is not None else None
        if producer is not None and producer.op_type == "Cast":
            weight = producer.inputs[0]
        if x is not None and weight is not None and weight.name in names:
            found[names[weight.name]] = x
    return found


def _groups(model: Model, found: Statistics) -> Iterator[list[str]]:
    """Names whose sums are missing, as many at a time as fit the memory."""
    group: list[str] = []
    held = 0
    for name, matrix in model.matrices.items():
        if name in found.unread or found.path(name).is_file():
            continue
        size = 4 * matrix.shape[1] ** 2
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _drawn(model: Model) -> Graph:
    g = Graph("capture", model.data.name, FAST)
    model.architecture.build(g, io.portable(g), model.weights)
    return g


def _draw(model: Model, group: Sequence[str], path: Path) -> None:
    """Writes the graph whose outputs are the inputs of `group`."""
    g = _drawn(model)
    taps = products(g, {name: model.matrices[name] for name in group})
    # In the order of `group`; several matrices may read one value, hence the Identity.
    outputs = [g.op("Identity", taps[name]) for name in group]
    for name, value in zip(group, outputs, strict=True):
        shape = ("batch_size", "sequence_length", model.matrices[name].shape[1])
        g.output(f"{name}.input", value, FLOAT, shape)
    g.keep_only(outputs)
    g.save(path)


def _sum(
    graph: Path, shape: Shape, ids: Ids, names: Sequence[str], notice: Notice
) -> dict[str, Float32]:
    """XᵀX over all windows. Int8 rounding of activations (a mean KL of 0.004) does not matter for
    a second moment, and 8-bit weights have no fast kernel without it."""
    session = open_graph(graph)
    feed = empty_cache(session, shape)
    sums: dict[str, Float32] = {}
    clock = Clock(len(ids), notice, "reading activations")
    # The first layer's inputs alone need no mask.
    taken = {value.name for value in session.get_inputs()}
    for row in ids:
        given = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        feed |= {name: array for name, array in given.items() if name in taken}
        for name, x in zip(names, session.run(None, feed), strict=True):
            rows = x.reshape(-1, x.shape[-1])
            product = rows.T @ rows
            if name in sums:
                sums[name] += product
            else:
                sums[name] = product
        clock.tick()
    return sums


def open_graph(graph: Path) -> Any:
    """An ONNX Runtime session of a graph of ours."""
    ort = load_onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    return ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])


def empty_cache(session: Any, shape: Shape) -> dict[str, NDArray[Any]]:
    """Feeds for a model that has seen nothing yet."""
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), np.float32)
    return {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}


def native_feeds(shape: Shape, ids: Ids) -> dict[str, NDArray[Any]]:
    """What io.native wants to know of `ids` (T,), a whole text, but its cache and logit rows."""
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": ids[None],
        "last_position": np.array([len(ids) - 1], np.int32),
        "total_positions": np.array(len(ids), np.int32),
    }
    if (switch := shape.rope_switch) is not None:
        feeds["rope_offset"] = np.array(switch if len(ids) > switch else 0, np.int64)
    return feeds


class Clock:
    """Says now and then how much is done and how long the rest will take."""

    def __init__(self, total: int, notice: Notice, what: str) -> None:
        self._total, self._notice, self._what = total, notice, what
        self._start = self._said = time.monotonic()
        self._done = 0

    def tick(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said < REPORT_S or self._done == self._total:
            return
        self._said = now
        left = (now - self._start) / self._done * (self._total - self._done)
        self._notice(f"{self._what}: {100 * self._done // self._total} %, {left:.0f} s left")
