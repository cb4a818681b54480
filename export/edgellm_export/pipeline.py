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
from edgellm_export import arch, changes, io, optimum, prefill, verify
from edgellm_export.arch import Architecture
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile
from edgellm_export.drawing import Drawn, Model, draw
from edgellm_export.kv import KV_WORDS, KVDtype, KVType, kv_dtype
from edgellm_export.progress import Notice, Steps, silent, uncounted
from edgellm_export.publish import Finished, publish, weight_bytes
from edgellm_export.quantize import kv
from edgellm_export.quantize.calibrate import Calibrated, Calibration, calibrate, read_text
from edgellm_export.recipe import Keep, Recipe, recipe
from edgellm_export.shrink import Shrink, Shrunk
from edgellm_export.store import WeightStore, stored_suffix
from edgellm_export.stored import StoredWeights
from edgellm_export.targets import ort, qnn
from edgellm_export.verify import Watch


@dataclass(frozen=True, slots=True)
class Job:
    """What to export. `recipe` None: what suits the source (see `default_recipe`); `sampling`: keys
    of generation_config.json that the source may lack; `lora`: folder of an adapter, merged unless
    `lora_at_run_time` only makes room for it and its like; `shrink`: what to leave out; `kv`:
    what the KV cache keeps (kv.KV_DTYPES), None: the type of the activations; `ort`: also an .ort
    file (targets.ort); `qnn`: also graphs for NPUs (targets.qnn); `fast_prefill`: also weights and
    a graph for long prompts (prefill); `tracer`: the Python that has optimum, for architectures
    without a builder of ours."""

    source: Path
    recipe: Recipe | None
    origin: Source
    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lora: Path | None = None
    calibration: Calibration | None = None
    shrink: Shrink = field(default_factory=Shrink)
    lora_at_run_time: bool = False
    kv: str | None = None
    ort: bool = False
    qnn: bool = False
    fast_prefill: bool = False
    tracer: Path = Path(sys.executable)

    def __post_init__(self) -> None:
        # What does not go together is refused before anything is calibrated.
        activations = self.recipe.activations if self.recipe else "float32"
        kv_dtype(self.kv, activations)
        if self.fast_prefill and activations == "float16":
            raise UsageError("--fast-prefill is for CPUs and float32 activations; leave it out")
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
        return _export(job, out, Watch(notice, steps))
    except OSError as error:
        raise StorageFailed(f"cannot write {out}: {error.strerror or error}") from error


def _export(job: Job, out: Path, watch: Watch) -> Manifest:
    if optimum.serves(job.source):
        from edgellm_export.optimum.pipeline import export_traced

        return export_traced(job, out, watch)
    shrunk = changes.opened(job, watch.notice)
    architecture = arch.find(shrunk.checkpoint.config["model_type"])
    chosen, found = _calibrated(job, shrunk, architecture, watch.notice)
    made = _converted(job, out, shrunk.checkpoint, chosen, found, watch)
    drawn, shape, self_check = _checked(job, out, made, found, watch)
    graphs, facts = _other_forms(job, made.model, drawn, shape, watch.notice)
    drawn.forget()
    data = f"onnx/{made.store.data.path.name}"
    probed = {"native": io.probe_layer(shape.num_hidden_layers)}
    described = {
        kind: GraphFile(kind, f"onnx/{path.name}", data, probed.get(kind))
        for kind, path in graphs.items()
    }
    record = _recipe_record(job, chosen, found) | shrunk.record
    finished = Finished(out, shape, made.store, described, record, {**self_check, **facts})
    return publish(finished, job.name, job.origin)


@dataclass(frozen=True, slots=True)
class _Made:
    """The weights, written; `suffix` is that of the files (see Recipe)."""

    model: Model
    store: WeightStore
    suffix: str


def _converted(
    job: Job,
    out: Path,
    checkpoint: Checkpoint,
    chosen: Recipe,
    found: Calibrated | None,
    watch: Watch,
) -> _Made:
    architecture = arch.find(checkpoint.config["model_type"])
    folder = out / "onnx"
    folder.mkdir()
    instead = changes.instead(checkpoint, chosen, watch.notice)
    slots = changes.slots(job, checkpoint)
    watch.notice(f"converting {job.name} ({chosen.name})")
    with DataFile(folder / "weights") as data:
        statistics = found.statistics if found else None
        rotates = job.fast_prefill
        store = WeightStore(checkpoint, chosen, data, instead, statistics, slots, rotates)
        weights = _stored(architecture, store, watch.steps)
    _check_names(job.recipe, store)
    changes.check_slots(slots, store.places)
    if job.ort:
        ort.check_size(weight_bytes(store.places))
    suffix = stored_suffix(store) if chosen.linear == Keep() else chosen.suffix
    data.rename(f"model{suffix}.onnx_data")
    for line in checkpoint.notices:
        watch.notice(line)
    return _Made(Model(architecture, weights, data.path), store, suffix)


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


def _checked(
    job: Job, out: Path, made: _Made, found: Calibrated | None, watch: Watch
) -> tuple[Drawn, Shape, dict[str, Any]]:
    """The graphs, drawn, the shape of what they compute, and what the self-check found."""
    store, model, chosen = made.store, made.model, made.store.recipe
    dtype = kv_dtype(job.kv, chosen.activations)
    shape = replace(model.shape, kv_dtype=dtype)
    portable = f"onnx/model{made.suffix}.onnx"
    write_configs(out, store.checkpoint, shape, portable, job.sampling)
    cache = _cache(job, model, dtype, out, watch.notice)
    drawn = draw(model, made.suffix, chosen, cache.kind)
    # First: a cache that costs too much is not told as a bundle too far from the float weights.
    costs = kv.record(cache, drawn, shape)
    watch.notice("checking it against a numpy forward pass on the same weights")
    stored = StoredWeights(store.data, store.places)
    candidate = verify.Candidate(out, drawn, shape, store.data, stored, store.places, chosen)
    text = None if found is None else found.ids[0].tolist()
    report = verify.check(candidate, store.checkpoint, text, watch)
    return drawn, shape, {**report.to_json(candidate.activations), **costs}


def _cache(job: Job, model: Model, dtype: KVDtype, out: Path, notice: Notice) -> kv.Chosen:
    """The KV cache. One that nobody chose is measured with the activations, whose type it has."""
    if job.kv is None:
        return kv.Chosen(KVType(dtype))
    text = job.calibration.text if job.calibration else None
    return kv.choose(model, dtype, out, None if text is None else read_text(text), notice)


def _other_forms(
    job: Job, model: Model, drawn: Drawn, shape: Shape, notice: Notice
) -> tuple[dict[str, Path], dict[str, Any]]:
    """All graphs by name, with those that the job wants beside two, and what their check found.

    An .ort file is none of them: edgellm never loads it.
    """
    graphs = {"native": drawn.native, "portable": drawn.portable}
    facts: dict[str, Any] = {}
    if job.ort:
        notice("writing it in ONNX Runtime's own format")
        ort.write(drawn.native, shape)
    if job.fast_prefill:
        graphs["prefill"] = prefill.draw(model, drawn)
        facts |= prefill.cost(graphs["prefill"], drawn.native, shape, model.data.parents[1])
    if not job.qnn:
        return graphs, facts
    notice("drawing and checking graphs of fixed shapes")
    paths = qnn.draw(model, drawn.native.stem.removeprefix("edgellm"))
    error = qnn.check(paths, drawn.exact, shape)
    return graphs | paths, facts | {"qnn_error": float(f"{error:.4g}")}


def _recipe_record(job: Job, chosen: Recipe, found: Calibrated | None) -> dict[str, Any]:
    """What the manifest says of how the weights were made."""
    record: dict[str, Any] = chosen.to_json()
    if job.lora is not None:
        record["lora"] = job.lora.name
        record["lora_mode"] = "runtime" if job.lora_at_run_time else "merge"
    if found is not None:
        record["calibration"] = dict(found.record)
    if job.kv not in (None, "fp32"):
        record["kv_cache"] = KV_WORDS[job.kv]
    if job.fast_prefill:
        record["prefill"] = prefill.WORDS
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
