"""From a checkpoint to a bundle: store the weights, draw the graphs, check, write the manifest.

The manifest is written last, so a folder without one is an export that did not finish.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, Shape, Source
from edgellm.bundle.manifest import Graph as GraphFile
from edgellm.errors import StorageFailed, UsageError
from edgellm.version import version
from edgellm_export import arch, io, verify
from edgellm_export.arch import Architecture
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.lora import REQUANTIZED, LoraCheckpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile, Stored
from edgellm_export.graph import EXACT, Graph
from edgellm_export.progress import Notice, Steps, silent, uncounted
from edgellm_export.quantize.calibrate import Calibrated, Calibration, calibrate
from edgellm_export.recipe import Integer, Keep, Recipe, Treatment, describe, recipe
from edgellm_export.store import Place, StoredWeights, WeightStore, stored_suffix


@dataclass(frozen=True, slots=True)
class Job:
    """What to export. `recipe` None: what suits the source (see `default_recipe`); `sampling`: keys
    of generation_config.json that the source may lack; `lora`: folder of an adapter to merge."""

    source: Path
    recipe: Recipe | None
    origin: Source
    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lora: Path | None = None
    calibration: Calibration | None = None


def default_recipe(checkpoint: Checkpoint) -> Recipe:
    """A GGUF file, GPTQ and AWQ keep their own blocks; a folder of floats becomes int8, which costs
    next to no quality (round to nearest at 4 bits would ruin a small model)."""
    return recipe("exact" if checkpoint.quantized else "int8")


def export_bundle(
    job: Job, out: Path, notice: Notice = silent, steps: Steps = uncounted
) -> Manifest:
    """The manifest of the bundle now in `out`, an existing empty folder.

    Corrupt and Incompatible name what is wrong with the checkpoint, SelfCheckFailed a bundle that
    does not compute it, StorageFailed a disk that is full. After an error `out` is not a bundle.
    """
    try:
        return _export(job, out, notice, steps)
    except OSError as error:
        raise StorageFailed(f"cannot write {out}: {error.strerror or error}") from error


def _export(job: Job, out: Path, notice: Notice, steps: Steps) -> Manifest:
    checkpoint = _open(job)
    architecture = arch.find(checkpoint.config["model_type"])
    graphs = out / "onnx"
    graphs.mkdir()
    chosen, found = _calibrated(job, checkpoint, architecture, notice)
    instead = _instead(checkpoint, chosen, notice)
    notice(f"converting {job.name} ({chosen.name})")
    with DataFile(graphs / "weights") as data:
        store = WeightStore(checkpoint, chosen, data, instead, found.statistics if found else None)
        weights = _stored(architecture, store, steps)
    _check_names(job.recipe, store)
    suffix = stored_suffix(store) if chosen.linear == Keep() else chosen.suffix
    data.rename(f"model{suffix}.onnx_data")
    drawn = _draw(architecture, weights, graphs, suffix, chosen.accuracy_level)
    for line in checkpoint.notices:
        notice(line)
    shape = architecture.shape(weights)
    write_configs(out, checkpoint, shape, f"onnx/{drawn.portable.name}", job.sampling)
    notice("checking it against a numpy forward pass on the same weights")
    candidate = _candidate(out, drawn, shape, store)
    text = None if found is None else found.ids[0].tolist()
    report = verify.check(candidate, checkpoint, text, verify.Watch(notice, steps))
    drawn.exact.unlink()
    manifest = Manifest(
        name=job.name,
        producer=f"edgellm {version()}",
        source=dataclasses.replace(job.origin, licence=job.origin.licence or checkpoint.licence),
        shape=shape,
        graphs={
            kind: GraphFile(kind, f"onnx/{path.name}", f"onnx/{data.path.name}", probed)
            for kind, path, probed in (
                ("native", drawn.native, io.probe_layer(shape.num_hidden_layers)),
                ("portable", drawn.portable, None),
            )
        },
        files=_records(out, {data.path: FileRecord(data.bytes, data.sha256)}),
        recipe=_recipe_record(job, chosen, found),
        self_check=report.to_json(),
        weight_bytes=_weight_bytes(store.places),
    )
    (out / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _stored(architecture: Architecture, store: WeightStore, steps: Steps) -> Any:
    """The architecture's weights, written."""
    layers = store.checkpoint.config["num_hidden_layers"]
    with steps("converting layers", layers) as show:

        def told(name: str) -> None:
            match name.split("."):
                case ["layers", number, *_]:
                    show(int(number))

        store.told = told
        weights = architecture.store(store)
        show(layers)
    return weights


def _check_names(wanted: Recipe | None, store: WeightStore) -> None:
    """UsageError for a matrix that the recipe names and the model does not have."""
    unknown = sorted(wanted.matrices.keys() - store.matrices.keys()) if wanted else []
    if unknown:
        raise UsageError(
            f"recipe {store.recipe.name}: matrices.{unknown[0]} is none of this model's, which are "
            f"{', '.join(sorted(store.matrices)[:4])}, …"
        )


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
        store.recipe,
    )


def _open(job: Job) -> Checkpoint:
    checkpoint = open_checkpoint(job.source)
    return checkpoint if job.lora is None else LoraCheckpoint(checkpoint, job.lora)


def _instead(checkpoint: Checkpoint, chosen: Recipe, notice: Notice) -> Mapping[str, Treatment]:
    """What becomes of merged weights when the recipe keeps all others."""
    if not isinstance(checkpoint, LoraCheckpoint) or chosen.linear != Keep():
        return {}
    instead = checkpoint.instead()
    count = sum(isinstance(treatment, Integer) for treatment in instead.values())
    if count:
        notice(f"{count} merged layers become {describe(REQUANTIZED)}; the others stay exact")
    return instead


def _recipe_record(job: Job, chosen: Recipe, found: Calibrated | None) -> dict[str, Any]:
    """What the manifest says of how the weights were made."""
    record: dict[str, Any] = chosen.to_json()
    if job.lora is not None:
        record["lora"] = job.lora.name
    if found is not None:
        record["calibration"] = dict(found.record)
    return record


def _calibrated(
    job: Job, checkpoint: Checkpoint, architecture: Architecture, notice: Notice
) -> tuple[Recipe, Calibrated | None]:
    """The recipe, and what calibration found when the job wants it."""
    chosen = job.recipe or default_recipe(checkpoint)
    if job.calibration is None:
        return chosen, None
    chosen = chosen.calibrated()
    found = calibrate(checkpoint, architecture, job.calibration, notice)
    return dataclasses.replace(chosen, matrices={**chosen.matrices, **found.matrices}), found


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
