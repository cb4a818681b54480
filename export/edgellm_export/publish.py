"""The last step of an export: the manifest, with the digest of every file beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import MANIFEST_NAME, FileRecord, Graph, Manifest, Shape, Source
from edgellm.version import version
from edgellm_export.data import Stored
from edgellm_export.linear import Matrix
from edgellm_export.store import Place, WeightStore


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything of a checked bundle but its manifest."""

    folder: Path
    shape: Shape
    store: WeightStore
    graphs: Mapping[str, Graph]
    recipe: Mapping[str, Any]
    self_check: Mapping[str, Any]


def publish(bundle: Finished, name: str, origin: Source) -> Manifest:
    """The manifest, now in the folder. The checkpoint's licence is the one if `origin` has none."""
    data = bundle.store.data
    manifest = Manifest(
        name=name,
        producer=f"edgellm {version()}",
        source=replace(origin, licence=origin.licence or bundle.store.checkpoint.licence),
        shape=bundle.shape,
        graphs=bundle.graphs,
        files=_records(bundle.folder, {data.path: FileRecord(data.bytes, data.sha256)}),
        recipe=bundle.recipe,
        self_check=bundle.self_check,
        weight_bytes=weight_bytes(bundle.store.places),
    )
    (bundle.folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


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


def weight_bytes(places: Mapping[str, Place]) -> dict[str, int]:
    """What the weights take once loaded, for the memory plan (device.memory.WeightBytes)."""
    sizes = dict.fromkeys(("codes", "blocks", "floats", "dense", "largest"), 0)
    for stored in {id(place.stored): place.stored for place in places.values()}.values():
        if isinstance(stored, Stored):
            sizes["floats"] += stored.nbytes
            continue
        if stored.scales is None:
            sizes["largest"] = max(sizes["largest"], stored.values.nbytes)
            sizes["dense"] += 4 * stored.shape[0] * stored.shape[1]
            continue
        blocks = stored.scales.shape[0] * stored.scales.shape[1]
        # With the zeros that a last block which is not full gets at load.
        codes = blocks * stored.block_size * stored.bits // 8
        sizes["largest"] = max(sizes["largest"], codes)
        sizes["codes"] += codes
        sizes["blocks"] += blocks
        # Scales and the shifts made of minima are float32 once their casts are folded.
        sizes["floats"] += 4 * blocks * (2 if stored.minima else 1)
    rotated = sum(m.rotated.nbytes for m in _matrices(places) if m.rotated)
    return sizes | ({"prefill": rotated} if rotated else {})


def _matrices(places: Mapping[str, Place]) -> list[Matrix]:
    """Each stored matrix once."""
    found = {id(place.stored): place.stored for place in places.values()}
    return [stored for stored in found.values() if isinstance(stored, Matrix)]
