"""From a folder that only optimum understands to a bundle like any other.

The self-check is that of every bundle, with optimum's own float graph in the place of the numpy
forward pass; that graph has to agree with torch first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from edgellm.bundle.manifest import CONCAT, Manifest, Shape
from edgellm.bundle.manifest import Graph as GraphFile
from edgellm.errors import UsageError
from edgellm_export import fidelity, verify
from edgellm_export.checkpoint.safetensors import text_files
from edgellm_export.checks import SelfCheckFailed
from edgellm_export.configs import write_configs
from edgellm_export.data import DataFile
from edgellm_export.drawing import Drawn
from edgellm_export.graph import EXACT, Graph
from edgellm_export.optimum import trace
from edgellm_export.optimum.checkpoint import TracedCheckpoint
from edgellm_export.optimum.draw import StoredModel, draw, store
from edgellm_export.optimum.model import TracedModel
from edgellm_export.optimum.trace import Trace
from edgellm_export.publish import Finished, publish
from edgellm_export.recipe import Keep, Recipe, recipe
from edgellm_export.reference.parts import Weight
from edgellm_export.shrink import Shrink
from edgellm_export.store import WeightStore
from edgellm_export.stored import StoredWeights
from edgellm_export.verify import Watch
from edgellm_export.weights import Float32

if TYPE_CHECKING:
    from edgellm_export.pipeline import Job

DEFAULT_RECIPE = "int8"


def export_traced(job: Job, out: Path, watch: Watch) -> Manifest:
    """The manifest of the bundle now in `out`, an existing empty folder.

    Errors as in pipeline.export_bundle and trace.run; UsageError for what a traced model cannot be.
    """
    chosen, notice = _recipe(job), watch.notice
    trace.check_packages(job.tracer, job.source)
    sample = _sample(job.source)
    with tempfile.TemporaryDirectory(dir=out, prefix="trace-") as folder:
        work = Path(folder)
        notice(f"tracing {job.name} with torch and optimum")
        traced = trace.run(job.source, work, sample, job.tracer)
        model = TracedModel(traced.model)
        checkpoint = TracedCheckpoint(job.source, model)
        notice(f"converting {job.name} ({chosen.name})")
        made = _write(out, checkpoint, traced, chosen, job.sampling)
        for line in checkpoint.notices:
            notice(line)
        notice("checking it against torch and the float graph")
        report = _check(made, checkpoint, traced, work, watch)
    made.exact.unlink()
    graphs = {
        kind: GraphFile(
            kind, f"onnx/{path.name}", f"onnx/{made.store.data.path.name}", cache=CONCAT
        )
        for kind, path in (("native", made.native), ("portable", made.portable))
    }
    record = chosen.to_json() | {"traced_by": "optimum-onnx"}
    finished = Finished(out, made.shape, made.store, graphs, record, report)
    return publish(finished, job.name, job.origin)


@dataclass(frozen=True, slots=True)
class _Made:
    """Everything of a bundle but its manifest."""

    folder: Path
    native: Path
    portable: Path
    exact: Path
    shape: Shape
    store: WeightStore


def _recipe(job: Job) -> Recipe:
    chosen = job.recipe or recipe(DEFAULT_RECIPE)
    if chosen.linear == Keep():
        raise UsageError(
            f"precision {chosen.name} keeps a checkpoint's own blocks, and a traced model has "
            "floats only; use int4, int8, fp16 or fp32"
        )
    if job.calibration is not None or job.lora is not None:
        what = "calibrated" if job.lora is None else "merged with an adapter"
        raise UsageError(f"a model without a builder here cannot be {what}; leave that out")
    if chosen.activations != "float32" or job.kv or job.ort or job.qnn or job.fast_prefill:
        raise UsageError(
            "a model without a builder here is made for CPUs, with a float32 KV cache; leave out "
            "--kv, --ort, --qnn and --fast-prefill, and use int4, int8, fp16 or fp32"
        )
    if job.shrink != Shrink():
        raise UsageError(
            "of a model without a builder here nothing can be left out; keep all of it"
        )
    return chosen


def _sample(source: Path) -> list[int]:
    """Token ids of the self-check's text."""
    text = text_files(source).tokenizer_json
    ids: list[int] = Tokenizer.from_str(text).encode(fidelity.sample()).ids
    return ids[: verify.TOKENS]


def _write(
    out: Path,
    checkpoint: TracedCheckpoint,
    traced: Trace,
    chosen: Recipe,
    sampling: Mapping[str, Any],
) -> _Made:
    graphs = out / "onnx"
    graphs.mkdir()
    with DataFile(graphs / f"model{chosen.suffix}.onnx_data") as data:
        weights = WeightStore(checkpoint, chosen, data)
        stored = store(weights, checkpoint.model)
    shape = _shape(checkpoint, traced, weights)
    native, portable, exact = (
        graphs / f"{name}{chosen.suffix}.onnx" for name in ("edgellm", "model", "check")
    )
    _draw(native, data.path.name, stored, chosen.accuracy_level, native=True)
    _draw(portable, data.path.name, stored, chosen.accuracy_level, native=False)
    _draw(exact, data.path.name, stored, EXACT, native=True)
    write_configs(out, checkpoint, shape, f"onnx/{portable.name}", sampling, genai=False)
    return _Made(out, native, portable, exact, shape, weights)


def _draw(path: Path, data: str, stored: StoredModel, level: int, *, native: bool) -> None:
    g = Graph(path.stem, data, level)
    g.spell_embedding = not native
    draw(g, stored, chosen_rows=native)
    g.save(path)


def _shape(checkpoint: TracedCheckpoint, traced: Trace, weights: WeightStore) -> Shape:
    model = checkpoint.model
    heads, width = model.kv_heads_and_width
    return Shape(
        architecture=str(checkpoint.config["model_type"]),
        num_hidden_layers=model.layers,
        num_attention_heads=traced.num_attention_heads,
        num_key_value_heads=heads,
        head_dim=width,
        hidden_size=traced.hidden_size,
        vocab_size=model.vocab_size,
        context_length=traced.context_length,
        parameters=weights.parameters,
    )


def _check(
    made: _Made,
    checkpoint: TracedCheckpoint,
    traced: Trace,
    work: Path,
    watch: Watch,
) -> dict[str, Any]:
    """The report; SelfCheckFailed when torch, the float graph and the bundle do not agree."""
    floats = verify.standard_logits(traced.model, made.shape, traced.ids)
    error = float(np.abs(floats - traced.logits).max() / np.abs(traced.logits).max())
    if not error <= verify.LIMIT:  # also NaN
        raise SelfCheckFailed(
            f"the graph that optimum traced differs from torch by {error:.3g}, allowed is "
            f"{verify.LIMIT:g}; nothing was published; use a model with a builder here"
        )

    def forward(weights: Weight, ids: Sequence[int]) -> Float32:
        path = work / "floats.onnx"
        _write_floats(traced.model, weights, path)
        return verify.standard_logits(path, made.shape, ids)

    candidate = verify.Candidate(
        made.folder,
        Drawn(made.native, made.portable, made.exact, made.exact, made.native),
        made.shape,
        made.store.data,
        StoredWeights(made.store.data, made.store.places),
        made.store.places,
        made.store.recipe,
        CONCAT,
        forward,
    )
    report = verify.check(candidate, checkpoint, None, watch).to_json(candidate.activations)
    fast = verify.standard_logits(made.portable, made.shape, traced.ids)
    torch = fidelity.measure(traced.logits, fast)
    found = {"traced_error": error, "kl_torch": torch.kl, "top1_torch": torch.top1}
    return report | {name: float(f"{value:.4g}") for name, value in found.items()}


def _write_floats(traced: Path, weights: Weight, path: Path) -> None:
    """optimum's own graph on the numbers that `weights` gives."""
    model = TracedModel(traced)
    for product in model.products:
        values = weights(f"{model.twins[product.name]}.weight")
        whole = np.ascontiguousarray(values.T if product.transposed else values)
        product.weight.const_value = ir.tensor(whole, name=product.weight.name)
    ir.save(model.onnx, path, external_data=f"{path.name}_data")
