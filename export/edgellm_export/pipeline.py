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

from edgellm.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, Source
from edgellm.bundle.manifest import Graph as GraphFile
from edgellm.errors import StorageFailed
from edgellm_export import arch, io, verify
from edgellm_export.arch import Architecture
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.lora import REQUANTIZED, LoraCheckpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile, Stored
from edgellm_export.graph import EXACT, Graph
from edgellm_export.recipe import Integer, Keep, Recipe, Treatment, describe, recipe
from edgellm_export.store import Place, StoredWeights, WeightStore, stored_suffix

PRODUCER = "edgellm 0.1.0"


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
    graphs = out / "onnx"
    graphs.mkdir()
    chosen = job.recipe or default_recipe(checkpoint)
    notice(f"converting {job.name} ({chosen.name})")
    with DataFile(graphs / "weights") as data:
        store = WeightStore(checkpoint, chosen, data, _instead(checkpoint, chosen, notice))
        weights = architecture.store(store)
    suffix = stored_suffix(store) if chosen.linear == Keep() else chosen.suffix
    data.rename(f"model{suffix}.onnx_data")
    native, portable = graphs / f"edgellm{suffix}.onnx", graphs / f"model{suffix}.onnx"
    exact = graphs / f"check{suffix}.onnx"
    for path, kind, level in (
        (native, "native", chosen.accuracy_level),
        (portable, "portable", chosen.accuracy_level),
        (exact, "native", EXACT),
    ):
        _draw(architecture, weights, path, kind, Graph(kind, data.path.name, level))
    for line in checkpoint.notices:
        notice(line)
    shape = architecture.shape(weights)
    write_configs(out, checkpoint, shape, f"onnx/{portable.name}", job.sampling)
    notice("checking it against a numpy forward pass on the same weights")
    stored = StoredWeights(data, store.places)
    candidate = verify.Candidate(out, native, portable, exact, shape, data, stored, store.places)
    report = verify.check(candidate, checkpoint, notice)
    exact.unlink()
    manifest = Manifest(
        name=job.name,
        producer=PRODUCER,
        source=dataclasses.replace(job.origin, licence=job.origin.licence or checkpoint.licence),
        shape=shape,
        graphs={
            "native": GraphFile("native", f"onnx/{native.name}", f"onnx/{data.path.name}"),
            "portable": GraphFile("portable", f"onnx/{portable.name}", f"onnx/{data.path.name}"),
        },
        files=_records(out, {data.path: FileRecord(data.bytes, data.sha256)}),
        recipe=chosen.to_json() | ({"lora": job.lora.name} if job.lora else {}),
        self_check=report.to_json(),
        weight_bytes=_weight_bytes(store.places),
    )
    (out / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


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


def _draw(architecture: Architecture, weights: Any, path: Path, kind: str, g: Graph) -> None:
    inputs = io.native(g) if kind == "native" else io.portable(g)
    architecture.build(g, inputs, weights)
    g.save(path)


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
