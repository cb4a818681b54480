"""The graph for long prompts: it fills the cache and has no logits; its products are `rotated`.

The runtime takes it for all of a prompt but the last token, whose logits are the native graph's.
What is lost that way is measured: logits behind a cache that it filled against those behind the
native graph's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm_export import fidelity, io
from edgellm_export.checks import within
from edgellm_export.conversation import sample_ids
from edgellm_export.drawing import Drawn, Model
from edgellm_export.graph import FAST

# Mean KL in nats of logits behind a filled cache. SmolLM2-135M: 0.002 for its own blocks, where
# rounding their activations costs 0.003 already.
KL_LIMIT = 0.05
# What the manifest says of these weights.
WORDS = "int8, one scale an output, inputs turned 64 at a time"


def draw(model: Model, drawn: Drawn) -> Path:
    """The graph, written, over the same kind of cache as the others."""
    path = drawn.native.with_name(drawn.native.name.replace("edgellm", "prefill", 1))
    g = model.built(path, io.prefill, FAST, drawn.kind)
    g.keep_only([value for value in g.outputs if "present." in (value.name or "")])
    g.save(path)
    return path


def cost(path: Path, native: Path, shape: Shape, folder: Path) -> dict[str, Any]:
    """Mean KL and top-1 agreement on the second half of the sample, whose first half went through
    the graph; SelfCheckFailed when that is too far."""
    ids = sample_ids(folder, shape)[: fidelity.token_count(shape.vocab_size, shape.context_length)]
    half = len(ids) // 2
    rest, rows = ids[half:], range(len(ids) - half)
    session = Session(native, shape, LoadOptions())
    cache = session.new_cache(len(ids))
    session.forward(ids[:half], [], cache)
    expected = session.forward(rest, rows, cache).copy()
    cache.tokens.clear()
    Session(path, shape, LoadOptions()).forward(ids[:half], [], cache)
    found = fidelity.measure(expected, session.forward(rest, rows, cache))
    within("logits behind the prefill graph (KL)", found.kl, KL_LIMIT)
    measured = {"kl": float(f"{found.kl:.4g}"), "top1": float(f"{found.top1:.4g}")}
    return {"prefill": {**measured, "tokens": found.tokens}}
