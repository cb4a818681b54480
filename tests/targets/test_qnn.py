"""The graphs for NPUs on the emulator of onnxruntime-qnn: zero CPU nodes, the same logits."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import environments
import numpy as np
import pytest
import tiny_architectures
import tiny_archs
import tiny_models as tiny
from environments import Unavailable
from harness import RUNNERS, SECONDS

from edgellm_export import arch, reference
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.data import DataFile
from edgellm_export.drawing import Model
from edgellm_export.recipe import recipe
from edgellm_export.store import WeightStore
from edgellm_export.stored import StoredWeights
from edgellm_export.targets import host, qnn

pytestmark = pytest.mark.targets

PACKAGES = ("onnxruntime-qnn==2.7.0", "onnxruntime==1.31.1", "numpy")
IDS = np.random.default_rng(7).integers(3, tiny.vocab_size(), 30).tolist()
PROMPT = 22
# The NPU computes in float16.
LIMIT = 0.02
OUTSIDE = dict(os.environ)

FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "llama": lambda f: tiny.write_folder(f, tiny.WIDE_HEADS),
    "gemma2": lambda f: tiny_archs.write(f, tiny_archs.GEMMA2),
    "gemma3": lambda f: tiny_archs.write(f, tiny_archs.GEMMA3),
    "phi3": lambda f: tiny_archs.write(f, tiny_archs.PHI3),
    **{
        name: (lambda f, name=name: tiny_architectures.write_folder(f, name))
        for name in tiny_architectures.CONFIGS
    },
}


@pytest.fixture(scope="module")
def python() -> Path:
    with environments.environment(OUTSIDE):
        try:
            found = environments.python("qnn", PACKAGES)
        except Unavailable as error:
            pytest.skip(f"no onnxruntime-qnn: {error}")
    probe = "import onnxruntime_qnn as q, onnxruntime as o; "
    probe += "o.register_execution_provider_library('qnn', q.get_library_path())"
    done = subprocess.run([str(found), "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"onnxruntime-qnn does not load on this machine: {reason}")
    return found


@pytest.mark.parametrize("precision", ["int4", "q4f16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_emulator_runs_every_node_and_gives_the_same_logits(
    python: Path, tmp_path: Path, family: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn, "CHUNK_TOKENS", 8)
    checkpoint = open_checkpoint(FAMILIES[family](tmp_path / "source"))
    architecture = arch.find(checkpoint.config["model_type"])
    with DataFile(tmp_path / "model.onnx_data") as data:
        store = WeightStore(checkpoint, recipe(precision), data)
        weights = architecture.store(store)
    paths = qnn.draw(Model(architecture, weights, data.path), "", 48)
    work, result = tmp_path / "work", tmp_path / "result.json"
    work.mkdir()
    job = {
        "host": str(Path(host.__file__).parent),
        "graphs": {name: str(path) for name, path in paths.items()},
        "prompt": IDS[:PROMPT],
        "following": IDS[PROMPT:],
        "work": str(work),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [str(python), str(RUNNERS / "qnn.py"), str(tmp_path / "job.json"), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found = json.loads(result.read_text())
    assert {name: set(nodes) for name, nodes in found["nodes"].items()} == {
        "qnn_prefill": {"qnn"},
        "qnn_decode": {"qnn"},
    }
    assert all(context["binary_bytes"] > 0 for context in found["contexts"].values())
    stored = StoredWeights(data, store.places)
    wanted = reference.forward(checkpoint.config, stored, IDS)[PROMPT - 1 :]
    error = np.abs(np.load(work / "logits.npy") - wanted).max() / np.abs(wanted).max()
    print(f"qnn {family} {precision}: error {error:.4f}, {found}")
    assert error < LIMIT
