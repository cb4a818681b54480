"""The other side of `tracing`: what it may see, how it is run, and what comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import Corrupt, EdgellmError, Incompatible
from edgellm_export import arch
from edgellm_export.checkpoint.folder import inside, read_object
from edgellm_export.checkpoint.safetensors import INDEX, INDEX_LIMIT_BYTES, SINGLE
from edgellm_export.weights import Float32

SCRIPT = Path(__file__).with_name("tracing.py")
EXTRA = "pip install 'edgellm[cpu,optimum]' into an environment of its own"
# Nothing is fetched, nothing is reported, and a folder's own code stays unknown.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
# What a model without a table of positions (ALiBi) and without a word about it was trained with.
DEFAULT_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Trace:
    """A float graph, and torch's logits (T, V) of `ids`."""

    model: Path
    ids: Sequence[int]
    logits: Float32
    num_attention_heads: int
    hidden_size: int
    context_length: int


def run(source: Path, work: Path, ids: Sequence[int], interpreter: Path) -> Trace:
    """The trace of the folder `source`, its files in `work`.

    Incompatible when optimum or transformers do not know the architecture, or cannot trace it.
    """
    kind = _kind(source)
    shown, out = work / "source", work / "traced"
    shown.mkdir()
    out.mkdir()
    _show(source, shown)
    job = {"source": str(shown), "out": str(out), "ids": list(ids)}
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    done = _python(interpreter, "-P", str(SCRIPT), str(work / "job.json"))
    answer = out / "answer.json"
    if done.returncode or not answer.is_file():
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise Incompatible(
            f"optimum could not trace {source} (model type {kind!r}): {last[:300]}; "
            "use a model with a builder here"
        )
    found = json.loads(answer.read_text(encoding="utf-8"))
    if "unknown" in found:
        raise Incompatible(
            f"architecture {kind!r} has no builder here, and {found['unknown']} does not know it "
            f"either; there are builders for: {', '.join(arch.names())}"
        )
    return _read(out, ids, found)


def check_packages(interpreter: Path, source: Path) -> None:
    """Incompatible, with the extra's name, when the interpreter lacks what tracing imports."""
    needed = ("optimum.exporters.onnx", "torch", "transformers")
    code = f"import importlib.util as u; [u.find_spec(n) or exit(n) for n in {needed!r}]"
    done = _python(interpreter, "-P", "-c", code)
    if done.returncode:
        raise Incompatible(
            f"architecture {_kind(source)!r} has no builder here (there are: "
            f"{', '.join(arch.names())}), and optimum-onnx, which may know it, is not installed: "
            f"{EXTRA} (it needs transformers below 4.58)"
        )


def _kind(source: Path) -> object:
    return read_object(source, "config.json").get("model_type")


def _python(interpreter: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [str(interpreter), *arguments],
            env={**os.environ, **QUIET},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise EdgellmError(
            f"cannot run {interpreter}: {error.strerror or error}; check its path"
        ) from error


def _show(source: Path, folder: Path) -> None:
    """Only config and safetensors: no Python files, no pickles, no tokenizer, no adapter."""
    config = read_object(source, "config.json")
    config.pop("auto_map", None)
    if config.get("quantization_config") is not None:
        raise Incompatible(
            f"{source}: quantization_config is set, and optimum traces floats only; use the "
            "original float weights"
        )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = {SINGLE} if inside(source, SINGLE).exists() else {INDEX, *_shards(source)}
    for name in sorted(names):
        path = inside(source, name)
        if not path.is_file():
            raise Corrupt(f"{source} lacks the weight file {name}; download it again")
        try:
            (folder / name).symlink_to(path.resolve())
        except OSError:  # Windows lets only some users make links
            shutil.copyfile(path, folder / name)


def _shards(source: Path) -> set[str]:
    weight_map = read_object(source, INDEX, INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise Corrupt(f"{source / INDEX} needs a weight_map of tensor names to files")
    return set(weight_map.values())


def _read(out: Path, ids: Sequence[int], found: Mapping[str, Any]) -> Trace:
    for key in ("num_attention_heads", "hidden_size"):
        if type(found[key]) is not int or found[key] < 1:
            raise Incompatible(f"config.json: {key} is {found[key]!r}; a decoder needs a number")
    logits = np.load(out / "logits.npy")
    return Trace(
        out / "model.onnx",
        list(ids)[: len(logits)],
        logits,
        found["num_attention_heads"],
        found["hidden_size"],
        found["context_length"] or DEFAULT_CONTEXT_TOKENS,
    )
