"""The native graph in ONNX Runtime's own format, and what a build of it needs to run that graph.

    edgellm_q4.ort                        graph and weights in one file, fusions applied
    required_operators_and_types.config   for ONNX Runtime's build.py --include_ops_by_config

For an app that carries a minimal ONNX Runtime of its own; edgellm and other programs read .onnx.
What was seen in ONNX Runtime 1.31.1: an .ort file takes all weights inside, whatever is asked for
(optimized_model_external_initializers_file_name is ignored), and cannot be saved beyond 2 GB
("SaveToOrtFormat Failed"). Scales and shifts that an .onnx makes at load are in it ready-made, in
float32: SmolLM2-135M Q4_1 grows from 99 to 144 MB.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.bundle.manifest import Shape
from edgellm.errors import EdgellmError, UsageError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime

CONFIG_NAME = "required_operators_and_types.config"
# flatbuffers, which the format is made of, counts offsets in 31 bits.
LIMIT_BYTES = (1 << 31) - 1
# Its tools change sys.path and the logging of the process that imports them: not ours.
_CONFIGURE = """
import sys
from collections.abc import Mapping
from pathlib import Path
from onnxruntime.tools.ort_format_model import create_config_from_models
create_config_from_models([Path(sys.argv[1])], Path(sys.argv[2]), True)
"""
CONFIGURE_SECONDS = 300
PROBE_TOKENS = 24
# Relative to the largest logit. It was 0 wherever it was measured: the nodes are the same.
LIMIT = 1e-2


def check_size(weight_bytes: Mapping[str, int]) -> None:
    """UsageError when weights that take so much in memory (Manifest.weight_bytes) are too large for
    the format."""
    needed = sum(weight_bytes[kind] for kind in ("codes", "floats", "dense"))
    if needed > LIMIT_BYTES:
        raise UsageError(
            f"an .ort file holds at most {LIMIT_BYTES / 1e6:.0f} MB and this model needs "
            f"{needed / 1e6:.0f}; leave out --ort"
        )


def write(graph: Path, shape: Shape) -> Path:
    """The .ort file, now beside `graph` with its configuration, having given the same logits.

    EdgellmError when ONNX Runtime cannot save it, or computes something else from it.
    """
    made = graph.with_suffix(".ort")
    _save(graph, made)
    _configure(made)
    error = _difference(graph, made, shape)
    if not error <= LIMIT:  # also NaN
        raise EdgellmError(
            f"{made.name} differs from {graph.name} by {error:.3g} of the largest logit; "
            "nothing was published; leave out --ort"
        )
    return made


def _save(graph: Path, made: Path) -> None:
    ort = load_onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.save_model_format", "ORT")
    # Fusions of operators, but no layout of one processor.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(made)
    try:
        ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = str(error).splitlines()[0][:200]
        raise EdgellmError(f"{made.name} cannot be saved: {first}; leave out --ort") from error


def _configure(made: Path) -> None:
    """Writes which operators, of which types, a build of ONNX Runtime must have."""
    command = [sys.executable, "-c", _CONFIGURE, made.name, CONFIG_NAME]
    done = subprocess.run(
        command,
        cwd=made.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CONFIGURE_SECONDS,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgellmError(f"{CONFIG_NAME} cannot be made: {last[:200]}; leave out --ort")


def _difference(graph: Path, made: Path, shape: Shape) -> float:
    """The largest difference of a logit, relative to the largest; prefill and one more token."""
    ids = (np.arange(PROBE_TOKENS) * 7919 % shape.vocab_size).tolist()
    found: list[Any] = []
    for path in (graph, made):
        session = Session(path, shape, LoadOptions())
        cache = KVCache(shape, len(ids) + 1)
        rows = session.forward(ids, range(len(ids)), cache).copy()
        found.append(np.concatenate([rows, session.forward(ids[:1], [0], cache)]))
    return float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())
