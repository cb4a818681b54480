"""Calibration from start to end: text, statistics of each matrix's inputs, kept for a rerun.

checkpoint ─ exact import ─▶ own words or a file ─▶ windows of ids ─▶ H of each matrix
                                      both kept in `Calibration.cache`, by what they came from
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import NotFound, UsageError
from edgellm_export import io
from edgellm_export.arch import Architecture
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import ALIGNMENT_BYTES, DataFile
from edgellm_export.graph import FAST, Graph
from edgellm_export.linear import Matrix
from edgellm_export.quantize import budget, selftext, sensitivity
from edgellm_export.quantize.capture import (
    Clock,
    Ids,
    Model,
    Notice,
    capture,
    key,
    save,
)
from edgellm_export.quantize.place import alone
from edgellm_export.recipe import Treatment, recipe
from edgellm_export.store import Place, WeightStore
from edgellm_export.stored import StoredWeights
from edgellm_export.weights import Float32

# Raise it when the same checkpoint and text would give other statistics.
VERSION = 1
WINDOW_TOKENS = 512
CALIBRATION_TOKENS = 16384
KL_FILE = "trial-kl.json"
HASHED = (".safetensors", ".gguf", ".json")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What to calibrate on and where to keep what was found.

    `text` is a UTF-8 file, None for the model's own words (sampled with `seed`); `tokens` of it
    are read. `target_mb` (10^6 bytes of weights file) chooses bits and blocks for each matrix by
    its loss, None takes the recipe's; `recover` may give floats that were 4-bit blocks these blocks
    back (budget.RECOVERED). `cache` is a folder for statistics, which are replaced by those of the
    next model.
    """

    cache: Path
    text: Path | None = None
    tokens: int = CALIBRATION_TOKENS
    seed: int = 0
    target_mb: float | None = None
    recover: bool = True

    def __post_init__(self) -> None:
        if self.target_mb is not None and not self.target_mb > 0:
            raise UsageError(f"--target-mb must be above 0, got {self.target_mb:g}")
        if self.tokens < WINDOW_TOKENS:
            raise UsageError(f"calibration needs {WINDOW_TOKENS} tokens or more, got {self.tokens}")

    def to_json(self, ids: Ids) -> dict[str, str | int]:
        """What the manifest records."""
        return {
            "text": "a file" if self.text else "the model's own words",
            "ids_sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
            "tokens": ids.size,
        }


@dataclass(frozen=True, slots=True)
class Calibrated:
    """H by matrix name, what the manifest says of the text, the schemes
    chosen for a target size (none without one), and the text itself: windows of ids."""

    statistics: Callable[[str], Float32 | None]
    record: Mapping[str, str | int]
    matrices: Mapping[str, Treatment]
    ids: Ids


def calibrate(
    checkpoint: Checkpoint, architecture: Architecture, wanted: Calibration, notice: Notice
) -> Calibrated:
    """The statistics of `checkpoint` on the wanted text. A rerun takes those it finds in the cache.

    UsageError and NotFound name what is wrong with the text. An interrupted run leaves whole files
    only (see place).
    """
    text = None if wanted.text is None else read_text(wanted.text)
    name = key(VERSION, _sha256(checkpoint.path), text, wanted.tokens, wanted.seed)
    with alone(wanted.cache, name) as (folder, scratch):
        model, stored = _import(checkpoint, architecture, scratch)
        write_configs(scratch, checkpoint, model.shape, "onnx/model.onnx", {})
        ids = _ids(model, wanted, text, folder / "ids.npy", notice)
        statistics = capture(model, ids, folder, notice)
        known: Callable[[str], Float32 | None] = statistics
        chosen: Mapping[str, Treatment] = {}
        if wanted.target_mb is not None:
            kl = sensitivity.measure(model, stored.named(model), ids, folder / KL_FILE, notice)
            known = _with_lookups(statistics, stored.named(model), kl)
            chosen = _plan(model, stored, known, kl, wanted, notice)
    clock = Clock(len(model.matrices), notice, "quantizing")

    # What lies apart in the checkpoint may be stored as one, or the other way round; such parts all
    # multiply the same.
    parts = {name.rpartition(".")[0]: name for name in model.matrices}

    def found(matrix: str) -> Float32 | None:
        clock.tick()
        near = (matrix, parts.get(matrix, ""), matrix.rpartition(".")[0])
        return known(next((one for one in near if one in model.matrices), matrix))

    return Calibrated(found, wanted.to_json(ids), chosen, ids)


def _import(
    checkpoint: Checkpoint, architecture: Architecture, scratch: Path
) -> tuple[Model, Stored]:
    with DataFile(scratch / "weights.data") as data:
        store = WeightStore(checkpoint, recipe("exact"), data)
        weights = architecture.store(store)
    model = Model(architecture, weights, data.path, store.matrices)
    read = StoredWeights(data, store.places)
    return model, Stored(read, store.places, data.bytes, frozenset(store.tables))


@dataclass(frozen=True, slots=True)
class Stored:
    """The imported weights, matrix by matrix; `tables` as in WeightStore."""

    read: StoredWeights
    places: Mapping[str, Place]
    bytes: int
    tables: frozenset[str]

    def matrix(self, matrix: Matrix) -> Float32:
        """All its rows (N, K), float32."""
        parts = [name for name, place in self.places.items() if place.stored is matrix]
        return np.concatenate([self.read(name) for name in parts])

    def named(self, model: Model) -> Callable[[str], Float32]:
        """`matrix` by the model's name for it."""
        return lambda name: self.matrix(model.matrices[name])


def _with_lookups(
    statistics: Callable[[str], Float32 | None],
    weight: Callable[[str], Float32],
    trial_kl: Mapping[str, float],
) -> Callable[[str], Float32 | None]:
    """`statistics`, where a tied embedding's lookups count too."""
    known = {}
    for name, kl in trial_kl.items():
        lookup_kl = trial_kl.get(sensitivity.lookup_of(name), 0.0)
        hessian = statistics(name) if lookup_kl > 0 else None
        if hessian is not None:
            known[name] = budget.joined(hessian, weight(name), kl, lookup_kl)
    return lambda name: known[name] if name in known else statistics(name)


def _plan(
    model: Model,
    stored: Stored,
    statistics: Callable[[str], Float32 | None],
    trial_kl: Mapping[str, float],
    wanted: Calibration,
    notice: Notice,
) -> dict[str, Treatment]:
    """The schemes that fit into the target with all that is not a matrix."""
    sizes = {name: _file_bytes(matrix) for name, matrix in model.matrices.items()}
    others = stored.bytes - sum(sizes.values()) + ALIGNMENT_BYTES * len(stored.places)
    clock = Clock(len(model.matrices), notice, "choosing bits for each matrix")
    read = stored.named(model)

    def weight(name: str) -> Float32:
        clock.tick()
        return read(name)

    shapes = {name: matrix.shape for name, matrix in model.matrices.items()}
    in_blocks = {name: sizes[name] for name, m in model.matrices.items() if m.scales is not None}
    material = budget.Material(shapes, weight, statistics, trial_kl, in_blocks, stored.tables)
    limit_bytes = int((wanted.target_mb or 0.0) * budget.BYTES_PER_MB) - others
    return budget.plan(material, limit_bytes, wanted.recover)


def _file_bytes(m: Matrix) -> int:
    """What a matrix takes in the data file, alignment included."""
    parts = (m.values, m.tail, m.scales, m.zero_points, m.minima)
    sizes = [part.nbytes for part in parts if part is not None]
    return sum(size + -size % ALIGNMENT_BYTES for size in sizes)


def _ids(model: Model, wanted: Calibration, text: str | None, path: Path, notice: Notice) -> Ids:
    """Windows of ids, from the cache, the text, or the model itself."""
    if path.is_file():
        notice("using the activations kept from an earlier run where they are there")
        ids: Ids = np.load(path, allow_pickle=False)
        return ids
    scratch = model.data.parent
    length = min(WINDOW_TOKENS, model.shape.context_length)
    if text is not None:
        ids = selftext.windows_of(scratch, text, wanted.tokens, length)
    else:
        graph = scratch / "write.onnx"
        g = Graph("write", model.data.name, FAST)
        model.architecture.build(g, io.portable(g), model.weights)
        g.save(graph)
        start = selftext.openings(scratch, selftext.ends(scratch))
        size = (max(1, wanted.tokens // length), length)
        ids = selftext.generate(graph, model.shape, start, size, wanted.seed, notice)
    save(path, ids)
    return ids


def read_text(path: Path) -> str:
    """The text of a calibration file; UsageError and NotFound say what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; give --calibration a text file") from error
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror or error}") from error


def _sha256(path: Path) -> str:
    """Of the checkpoint's files, whatever they are called."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    total = hashlib.sha256()
    for file in files:
        if file.is_file() and file.suffix in HASHED:
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()
