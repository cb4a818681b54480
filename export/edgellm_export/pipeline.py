"""From a checkpoint to a bundle: store the weights, draw the graphs, check, write the manifest.

The manifest is written last, so a folder without one is an export that did not finish.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, Shape, Source
from edgellm.bundle.manifest import Graph as GraphFile
from edgellm.errors import StorageFailed
from edgellm_export import arch, verify
from edgellm_export.arch import Architecture
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.lora import REQUANTIZED, LoraCheckpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile, Stored
from edgellm_export.drawing import Drawn, Model, draw
from edgellm_export.kv import KV_WORDS, KVDtype, KVType, kv_dtype
from edgellm_export.quantize import kv
from edgellm_export.quantize.calibrate import Calibrated, Calibration, calibrate, read_text
from edgellm_export.recipe import Integer, Keep, Recipe, Treatment, describe, recipe
from edgellm_export.store import Place, StoredWeights, WeightStore, stored_suffix
from edgellm_export.targets import ort, qnn

PRODUCER = "edgellm 0.1.0"


@dataclass(frozen=True, slots=True)
class Job:
    """What to export. `recipe` None: what suits the source (see `default_recipe`); `sampling`: keys
    of generation_config.json that the source may lack; `lora`: folder of an adapter to merge; `kv`:
    what the KV cache keeps (kv.KV_DTYPES), None: the type of the activations;
    `ort`: also an .ort file (targets.ort);
    `qnn`: also graphs for NPUs (targets.qnn)."""

    source: Path
    recipe: Recipe | None
    origin: Source
    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lora: Path | None = None
    calibration: Calibration | None = None
    kv: str | None = None
    ort: bool = False
    qnn: bool = False

    def __post_init__(self) -> None:
        # What does not go together is refused before anything is calibrated.
        kv_dtype(self.kv, self.recipe.activations if self.recipe else "float32")


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
    checkpoint = _open(job)
    architecture = arch.find(checkpoint.config["model_type"])
    folder = out / "onnx"
    folder.mkdir()
    chosen, found = _calibrated(job, checkpoint, architecture, notice)
    dtype = kv_dtype(job.kv, chosen.activations)
    instead = _instead(checkpoint, chosen, notice)
    notice(f"converting {job.name} ({chosen.name})")
    with DataFile(folder / "weights") as data:
        store = WeightStore(checkpoint, chosen, data, instead, found.statistics if found else None)
        weights = architecture.store(store)
    suffix = stored_suffix(store) if chosen.linear == Keep() else chosen.suffix
    data.rename(f"model{suffix}.onnx_data")
    for line in checkpoint.notices:
        notice(line)
    shape = dataclasses.replace(architecture.shape(weights), kv_dtype=dtype)
    write_configs(out, checkpoint, shape, f"onnx/model{suffix}.onnx", job.sampling)
    model = Model(architecture, weights, data.path)
    sizes = _checked_bytes(job, store)
    cache = _cache(job, model, dtype, out, notice)
    drawn = draw(model, suffix, chosen, cache.kind)
    notice("checking it against a numpy forward pass on the same weights")
    candidate = _candidate(out, drawn, shape, store)
    report = verify.check(candidate, checkpoint, notice)
    self_check = {**report.to_json(candidate.activations), **kv.record(cache, drawn, shape)}
    graphs, facts = _other_forms(job, model, drawn, shape, notice)
    drawn.forget()
    manifest = Manifest(
        name=job.name,
        producer=PRODUCER,
        source=dataclasses.replace(job.origin, licence=job.origin.licence or checkpoint.licence),
        shape=shape,
        graphs={
            kind: GraphFile(kind, f"onnx/{path.name}", f"onnx/{data.path.name}")
            for kind, path in graphs.items()
        },
        files=_records(out, {data.path: FileRecord(data.bytes, data.sha256)}),
        recipe=_recipe_record(job, chosen, found),
        self_check={**self_check, **facts},
        weight_bytes=sizes,
    )
    (out / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _candidate(out: Path, drawn: Drawn, shape: Shape, store: WeightStore) -> verify.Candidate:
    return verify.Candidate(
        out,
        drawn.native,
        drawn.portable,
        drawn.exact,
        drawn.cached,
        drawn.plain,
        "int8" if store.recipe.activations == "float32" else store.recipe.activations,
        shape,
        store.data,
        StoredWeights(store.data, store.places),
        store.places,
    )


def _open(job: Job) -> Checkpoint:
    checkpoint = open_checkpoint(job.source)
    return checkpoint if job.lora is None else LoraCheckpoint(checkpoint, job.lora)


def _instead(
    checkpoint: Checkpoint, chosen: Recipe, notice: Callable[[str], None]
) -> Mapping[str, Treatment]:
    """What becomes of merged weights when the recipe keeps all others."""
    if not isinstance(checkpoint, LoraCheckpoint) or chosen.linear != Keep():
        return {}
    instead = checkpoint.instead()
    count = sum(isinstance(treatment, Integer) for treatment in instead.values())
    if count:
        notice(f"{count} merged layers become {describe(REQUANTIZED)}; the others stay exact")
    return instead


def _checked_bytes(job: Job, store: WeightStore) -> dict[str, int]:
    """What the weights take once loaded, for which the wanted forms have room."""
    sizes = _weight_bytes(store.places)
    if job.ort:
        ort.check_size(sum(sizes[kind] for kind in ("codes", "floats", "dense")))
    return sizes


def _other_forms(
    job: Job, model: Model, drawn: Drawn, shape: Shape, notice: Callable[[str], None]
) -> tuple[dict[str, Path], dict[str, float]]:
    """All graphs by name, with those that the job wants beside two, and what their check found.

    An .ort file is none of them: edgellm never loads it.
    """
    graphs = {"native": drawn.native, "portable": drawn.portable}
    if job.ort:
        notice("writing it in ONNX Runtime's own format")
        ort.write(drawn.native, shape)
    if not job.qnn:
        return graphs, {}
    notice("drawing and checking graphs of fixed shapes")
    paths = qnn.draw(model, drawn.native.stem.removeprefix("edgellm"))
    error = qnn.check(paths, drawn.exact, shape)
    return graphs | paths, {"qnn_error": float(f"{error:.4g}")}


def _cache(
    job: Job, model: Model, dtype: KVDtype, out: Path, notice: Callable[[str], None]
) -> kv.Chosen:
    """The KV cache. One that nobody chose is measured with the activations, whose type it has."""
    if job.kv is None:
        return kv.Chosen(KVType(dtype))
    return kv.choose(model, dtype, out, _text(job), notice)


def _text(job: Job) -> str | None:
    """The user's calibration text, if there is one."""
    path = job.calibration.text if job.calibration else None
    return None if path is None else read_text(path)


def _recipe_record(job: Job, chosen: Recipe, found: Calibrated | None) -> dict[str, Any]:
    """What the manifest says of how the weights were made."""
    record: dict[str, Any] = chosen.to_json()
    if job.lora is not None:
        record["lora"] = job.lora.name
    if found is not None:
        record["calibration"] = dict(found.record)
    if job.kv not in (None, "fp32"):
        record["kv_cache"] = KV_WORDS[job.kv]
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
