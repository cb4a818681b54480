"""From a checkpoint to a bundle: store the weights, draw the graphs, check, write the manifest.

The manifest is written last, so a folder without one is an export that did not finish.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, Shape, Source
from edgellm.bundle.manifest import Graph as GraphFile
from edgellm.errors import Incompatible, StorageFailed, UsageError
from edgellm_export import arch, io, verify
from edgellm_export.arch import Architecture
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.lora import (
    CONFIG,
    REQUANTIZED,
    WEIGHTS,
    Adapter,
    LoraCheckpoint,
    known_stems,
)
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile, Stored
from edgellm_export.graph import EXACT, Graph
from edgellm_export.linear import Matrix
from edgellm_export.quantize.calibrate import Calibrated, Calibration, calibrate
from edgellm_export.recipe import Integer, Keep, Recipe, Treatment, describe, recipe
from edgellm_export.shrink import Shrink
from edgellm_export.shrink import apply as apply_shrink
from edgellm_export.shrink.wrapped import instead_of
from edgellm_export.store import Place, StoredWeights, WeightStore, stored_suffix

PRODUCER = "edgellm 0.1.0"


@dataclass(frozen=True, slots=True)
class Job:
    """What to export. `recipe` None: what suits the source (see `default_recipe`); `sampling`: keys
    of generation_config.json that the source may lack; `lora`: folder of an adapter, merged unless
    `lora_at_run_time` only makes room for it and its like; `shrink`: what to leave out."""

    source: Path
    recipe: Recipe | None
    origin: Source
    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lora: Path | None = None
    calibration: Calibration | None = None
    shrink: Shrink = field(default_factory=Shrink)
    lora_at_run_time: bool = False

    def __post_init__(self) -> None:
        if self.lora_at_run_time and self.shrink.measured:
            raise UsageError(
                "an adapter at run time fits whole layers; merge it, or leave out --drop-layers "
                "and --mlp-width"
            )

    @property
    def merged(self) -> Path | None:
        """The adapter that is merged."""
        return None if self.lora_at_run_time else self.lora


def default_recipe(checkpoint: Checkpoint) -> Recipe:
    """A GGUF file, GPTQ and AWQ keep their own blocks; a folder of floats becomes int8, which costs
    next to no quality (round to nearest at 4 bits would ruin a small model)."""
    return recipe("exact" if checkpoint.quantized else "int8")


def silent(line: str) -> None:
    """Takes a line and shows it to nobody."""


def export_bundle(job: Job, out: Path, notice: Callable[[str], None] = silent) -> Manifest:
    """The manifest of the bundle now in `out`, an existing empty folder.

    Corrupt and Incompatible name what is wrong with the checkpoint, SelfCheckFailed a bundle that
    does not compute it, StorageFailed a disk that is full. After an error `out` is not a bundle.
    """
    try:
        return _export(job, out, notice)
    except OSError as error:
        raise StorageFailed(f"cannot write {out}: {error.strerror or error}") from error


def _export(job: Job, out: Path, notice: Callable[[str], None]) -> Manifest:
    shrunk = apply_shrink(_open(job), job.shrink, notice)
    checkpoint = shrunk.checkpoint
    architecture = arch.find(checkpoint.config["model_type"])
    graphs = out / "onnx"
    graphs.mkdir()
    chosen, found = _calibrated(_own_cache(job, shrunk.record), checkpoint, architecture, notice)
    instead = _instead(checkpoint, chosen, notice)
    notice(f"converting {job.name} ({chosen.name})")
    with DataFile(graphs / "weights") as data:
        statistics = found.statistics if found else None
        slots = _slots(job, checkpoint)
        store = WeightStore(checkpoint, chosen, data, instead, statistics, slots=slots)
        weights = architecture.store(store)
    _check_slots(slots, store.places)
    suffix = stored_suffix(store) if chosen.linear == Keep() else chosen.suffix
    data.rename(f"model{suffix}.onnx_data")
    drawn = _draw(architecture, weights, graphs, suffix, chosen.accuracy_level)
    for line in checkpoint.notices:
        notice(line)
    shape = architecture.shape(weights)
    write_configs(out, checkpoint, shape, f"onnx/{drawn.portable.name}", job.sampling)
    notice("checking it against a numpy forward pass on the same weights")
    candidate = _candidate(out, drawn, shape, store)
    report = verify.check(candidate, checkpoint, notice)
    drawn.exact.unlink()
    manifest = Manifest(
        name=job.name,
        producer=PRODUCER,
        source=replace(job.origin, licence=job.origin.licence or checkpoint.licence),
        shape=shape,
        graphs={
            kind: GraphFile(kind, f"onnx/{path.name}", f"onnx/{data.path.name}")
            for kind, path in (("native", drawn.native), ("portable", drawn.portable))
        },
        files=_records(out, {data.path: FileRecord(data.bytes, data.sha256)}),
        recipe=_recipe_record(job, chosen, found) | shrunk.record,
        self_check=report.to_json(),
        weight_bytes=_weight_bytes(store.places),
    )
    (out / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The graphs of a bundle over one data file; `exact` is for the self-check only."""

    native: Path
    portable: Path
    exact: Path


def _draw(
    architecture: Architecture, weights: Any, folder: Path, suffix: str, accuracy_level: int
) -> _Drawn:
    data = f"model{suffix}.onnx_data"
    drawn = _Drawn(
        folder / f"edgellm{suffix}.onnx",
        folder / f"model{suffix}.onnx",
        folder / f"check{suffix}.onnx",
    )
    for path, inputs, level in (
        (drawn.native, io.native, accuracy_level),
        (drawn.portable, io.portable, accuracy_level),
        (drawn.exact, io.native, EXACT),
    ):
        g = Graph(path.stem, data, level)
        architecture.build(g, inputs(g), weights)
        g.save(path)
    return drawn


def _candidate(out: Path, drawn: _Drawn, shape: Shape, store: WeightStore) -> verify.Candidate:
    return verify.Candidate(
        out,
        drawn.native,
        drawn.portable,
        drawn.exact,
        shape,
        store.data,
        StoredWeights(store.data, store.places),
        store.places,
    )


def _open(job: Job) -> Checkpoint:
    checkpoint = open_checkpoint(job.source)
    return checkpoint if job.merged is None else LoraCheckpoint(checkpoint, job.merged)


def _slots(job: Job, checkpoint: Checkpoint) -> frozenset[str]:
    """Names of the weights that an adapter at run time may change: those that `lora` changes."""
    if job.lora is None or not job.lora_at_run_time:
        return frozenset()
    adapter = Adapter(job.lora)
    stems = known_stems(adapter, checkpoint)
    for name, stem in stems.items():
        adapter.check(stem, checkpoint.weight(name).shape)
    return frozenset(stems)


def _check_slots(slots: Collection[str], places: Mapping[str, Place]) -> None:
    """Incompatible names a weight that has no room for an adapter, such as an expert's."""
    for name in slots:
        stored = places[name].stored
        if not isinstance(stored, Matrix) or not stored.slots:
            raise Incompatible(f"{name} takes no adapter at run time; use --lora-mode merge")


def _instead(
    checkpoint: Checkpoint, chosen: Recipe, notice: Callable[[str], None]
) -> Mapping[str, Treatment]:
    """What becomes of changed weights when the recipe keeps all others."""
    instead = instead_of(checkpoint) if chosen.linear == Keep() else {}
    count = sum(isinstance(treatment, Integer) for treatment in instead.values())
    if count:
        notice(f"{count} changed layers become {describe(REQUANTIZED)}; the others stay exact")
    return instead


def _recipe_record(job: Job, chosen: Recipe, found: Calibrated | None) -> dict[str, Any]:
    """What the manifest says of how the weights were made."""
    record: dict[str, Any] = chosen.to_json()
    if job.lora is not None:
        record["lora"] = job.lora.name
        record["lora_mode"] = "runtime" if job.lora_at_run_time else "merge"
    if found is not None:
        record["calibration"] = dict(found.record)
    return record


def _calibrated(
    job: Job, checkpoint: Checkpoint, architecture: Architecture, notice: Callable[[str], None]
) -> tuple[Recipe, Calibrated | None]:
    """The recipe, and what calibration found when the job wants it."""
    chosen = job.recipe or default_recipe(checkpoint)
    if job.calibration is None:
        return chosen, None
    chosen = chosen.calibrated()
    found = calibrate(checkpoint, architecture, job.calibration, notice)
    return replace(chosen, matrices={**chosen.matrices, **found.matrices}), found


def _own_cache(job: Job, shrunk: Mapping[str, Any]) -> Job:
    """The same job; what is known of the checkpoint as it lies there does not hold for a changed
    one, whose statistics are kept apart."""
    if job.calibration is None or (job.merged is None and not shrunk):
        return job
    changes = hashlib.sha256(json.dumps(shrunk, sort_keys=True).encode())
    if job.merged is not None:
        for name in (CONFIG, WEIGHTS):
            changes.update((job.merged / name).read_bytes())
    cache = job.calibration.cache / f"changed-{changes.hexdigest()[:32]}"
    return replace(job, calibration=replace(job.calibration, cache=cache))


def _records(folder: Path, known: Mapping[Path, FileRecord]) -> dict[str, FileRecord]:
    """Bytes and sha256 of every file in the folder, by its path inside."""
    records = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            records[name] = known.get(path) or _record(path)
    return records


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _weight_bytes(places: Mapping[str, Place]) -> dict[str, int]:
    """What the weights take once loaded, for the memory plan (device.memory.WeightBytes)."""
    sizes = dict.fromkeys(("codes", "blocks", "floats", "dense", "largest"), 0)
    for stored in {id(place.stored): place.stored for place in places.values()}.values():
        if isinstance(stored, Stored):
            sizes["floats"] += stored.nbytes
            continue
        sizes["largest"] = max(sizes["largest"], stored.values.nbytes)
        if stored.scales is None:
            sizes["dense"] += 4 * stored.shape[0] * stored.shape[1]
            continue
        blocks = stored.scales.shape[0] * stored.scales.shape[1]
        sizes["codes"] += stored.values.nbytes
        sizes["blocks"] += blocks
        # Scales and the shifts made of minima are float32 once their casts are folded.
        sizes["floats"] += 4 * blocks * (2 if stored.minima else 1)
    return sizes
