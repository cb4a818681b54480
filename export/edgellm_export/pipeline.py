"""From a checkpoint to a bundle: store the weights, draw the graphs, check, write the manifest.

The manifest is written last, so a folder without one is an export that did not finish.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import Graph as GraphFile
from edgellm.bundle.manifest import Manifest, Shape, Source
from edgellm.errors import StorageFailed, UsageError
from edgellm_export import arch, changes, io, optimum, verify
from edgellm_export.arch import Architecture
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile
from edgellm_export.graph import EXACT, Graph
from edgellm_export.progress import Notice, Steps, silent, uncounted
from edgellm_export.publish import Finished, publish
from edgellm_export.quantize.calibrate import Calibrated, Calibration, calibrate
from edgellm_export.recipe import Keep, Recipe, recipe
from edgellm_export.shrink import Shrink, Shrunk
from edgellm_export.store import StoredWeights, WeightStore, stored_suffix


@dataclass(frozen=True, slots=True)
class Job:
    """What to export. `recipe` None: what suits the source (see `default_recipe`); `sampling`: keys
    of generation_config.json that the source may lack; `lora`: folder of an adapter, merged unless
    `lora_at_run_time` only makes room for it and its like; `shrink`: what to leave out; `tracer`:
    the Python that has optimum, for architectures without a builder of ours."""

    source: Path
    recipe: Recipe | None
    origin: Source
    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lora: Path | None = None
    calibration: Calibration | None = None
    shrink: Shrink = field(default_factory=Shrink)
    lora_at_run_time: bool = False
    tracer: Path = Path(sys.executable)

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
    if optimum.serves(job.source):
        from edgellm_export.optimum.pipeline import export_traced

        return export_traced(job, out, verify.Watch(notice, steps))
    shrunk = changes.opened(job, notice)
    checkpoint = shrunk.checkpoint
    architecture = arch.find(checkpoint.config["model_type"])
    folder = out / "onnx"
    folder.mkdir()
    chosen, found = _calibrated(job, shrunk, architecture, notice)
    instead = changes.instead(checkpoint, chosen, notice)
    slots = changes.slots(job, checkpoint)
    notice(f"converting {job.name} ({chosen.name})")
    with DataFile(folder / "weights") as data:
        statistics = found.statistics if found else None
        store = WeightStore(checkpoint, chosen, data, instead, statistics, slots)
        weights = _stored(architecture, store, steps)
    _check_names(job.recipe, store)
    changes.check_slots(slots, store.places)
    suffix = stored_suffix(store) if chosen.linear == Keep() else chosen.suffix
    data.rename(f"model{suffix}.onnx_data")
    drawn = _draw(architecture, weights, folder, suffix, chosen.accuracy_level)
    for line in checkpoint.notices:
        notice(line)
    shape = architecture.shape(weights)
    write_configs(out, checkpoint, shape, f"onnx/{drawn.portable.name}", job.sampling)
    notice("checking it against a numpy forward pass on the same weights")
    candidate = _candidate(out, drawn, shape, store)
    text = None if found is None else found.ids[0].tolist()
    report = verify.check(candidate, checkpoint, text, verify.Watch(notice, steps))
    drawn.exact.unlink()
    graphs = {
        kind: GraphFile(kind, f"onnx/{path.name}", f"onnx/{data.path.name}", probed)
        for kind, path, probed in (
            ("native", drawn.native, io.probe_layer(shape.num_hidden_layers)),
            ("portable", drawn.portable, None),
        )
    }
    record = _recipe_record(job, chosen, found) | shrunk.record
    finished = Finished(out, shape, store, graphs, record, report.to_json())
    return publish(finished, job.name, job.origin)


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
    job: Job, shrunk: Shrunk, architecture: Architecture, notice: Notice
) -> tuple[Recipe, Calibrated | None]:
    """The recipe, and what calibration found when the job wants it."""
    chosen = job.recipe or default_recipe(shrunk.checkpoint)
    if job.calibration is None:
        return chosen, None
    chosen = chosen.calibrated()
    wanted = changes.own_cache(job, job.calibration, shrunk.record)
    found = calibrate(shrunk.checkpoint, architecture, wanted, notice)
    return replace(chosen, matrices={**chosen.matrices, **found.matrices}), found
