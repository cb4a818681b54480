"""Architectures without a builder of ours: traced by the real optimum-onnx, run by our session.

The environment is that of the optimum runtime; where it cannot be made the tests skip and say why.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import numpy as np
import pytest
import tiny_models as tiny
from environments import Unavailable

from edgellm.bundle.manifest import CONCAT, Manifest, Source
from edgellm.errors import Incompatible
from edgellm.runtime.concat import open_graph
from edgellm.runtime.decode import decode, prefill
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import recipe

RUNNER = Path(__file__).parent / "runners" / "traced.py"
SECONDS = 600
NEW_TOKENS = 24
VOCAB = tiny.vocab_size()
# The last one goes in two chunks.
PROMPTS = [
    np.random.default_rng(seed).integers(3, VOCAB, length).tolist()
    for seed, length in enumerate((1, 7, 40, 150))
]
# Relative to the largest logit: float32 sums in another order.
LIMIT = 2e-5
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "rotary_pct": 0.25,
    },
    "opt": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 128,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "phi": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
    },
    "stablelm": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
    },
}


@dataclass(frozen=True)
class Theirs:
    """A folder, what transformers answers to PROMPTS, and the Python that knows it."""

    folder: Path
    answers: list[list[int]]
    logits: list[np.ndarray]
    python: Path


@pytest.fixture(scope="session")
def python() -> Path:
    try:
        return environments.python("optimum", environments.OPTIMUM)
    except Unavailable as error:
        pytest.skip(f"no optimum: {error}")


@pytest.fixture(scope="session", params=MODELS)
def theirs(
    request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Theirs:
    work = tmp_path_factory.mktemp(request.param)
    folder = tiny.write_folder(work / request.param, tiny.TINY)
    (folder / "model.safetensors").unlink()
    config = {**MODELS[request.param], "vocab_size": VOCAB}
    found = run(python, work, folder=str(folder), kind=request.param, config=config)
    logits = [np.array(rows, np.float32) for rows in found["logits"]]
    return Theirs(folder, found["answers"], logits, python)


def run(python: Path, work: Path, **job: Any) -> dict[str, Any]:
    content = {"prompts": PROMPTS, "new_tokens": NEW_TOKENS, **job}
    (work / "job.json").write_text(json.dumps(content), encoding="utf-8")
    command = [str(python), str(RUNNER), str(work / "job.json"), str(work / "result.json")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    result: dict[str, Any] = json.loads((work / "result.json").read_text(encoding="utf-8"))
    return result


def export(theirs: Theirs, precision: str, out: Path) -> Manifest:
    out.mkdir()
    job = Job(theirs.folder, recipe(precision), Source("t"), "t", tracer=theirs.python)
    return export_bundle(job, out)


def opened(found: Manifest, folder: Path) -> Session:
    native = found.graphs["native"]
    return open_graph(folder / native.path, native, found.shape, LoadOptions(threads=1))


def greedy(session: Session, prompt: list[int]) -> list[int]:
    cache = session.new_cache(1)
    logits = prefill(session, cache, prompt)
    tokens = decode(
        session, cache, logits, lambda row, _: int(row.argmax()), frozenset(), NEW_TOKENS
    )
    return [token.id for token in tokens]


def test_float32_answers_are_those_of_transformers(theirs: Theirs, tmp_path: Path) -> None:
    found = export(theirs, "fp32", tmp_path / "out")
    assert found.graphs["native"].cache == CONCAT
    session = opened(found, tmp_path / "out")
    for prompt, answer, wanted in zip(PROMPTS, theirs.answers, theirs.logits, strict=True):
        whole = session.forward(prompt, range(len(prompt)), session.new_cache(1))
        assert np.abs(whole - wanted).max() <= LIMIT * np.abs(wanted).max()
        assert greedy(session, prompt) == answer
    # One answer that says the same token all the time would say nothing.
    assert len({token for answer in theirs.answers for token in answer}) >= len(PROMPTS)
    other = run(
        theirs.python,
        tmp_path,
        bundle=str(tmp_path / "out"),
        file=Path(found.graphs["portable"].path).name,
    )
    assert other["answers"] == theirs.answers


def test_pieces_and_a_way_back_make_no_difference(theirs: Theirs, tmp_path: Path) -> None:
    session = opened(export(theirs, "fp32", tmp_path / "out"), tmp_path / "out")
    prompt, wanted = PROMPTS[-1], theirs.logits[-1]
    limit = LIMIT * np.abs(wanted).max()
    cache = session.new_cache(1)
    found = [session.forward(prompt[:64], range(64), cache).copy()]
    session.forward(prompt[:9], [], cache)
    assert cache.keep_common(prompt) == 64
    found += [session.forward([token], [0], cache).copy() for token in prompt[64:100]]
    found.append(session.forward(prompt[100:], range(50), cache).copy())
    assert np.abs(np.concatenate(found) - wanted).max() <= limit


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_every_precision_passes_its_self_check(
    theirs: Theirs, tmp_path: Path, precision: str
) -> None:
    found = export(theirs, precision, tmp_path / "out")
    # Random weights: what int4 costs them is no quality of a trained model.
    limits = {"int8": 0.01, "int4": 1.0, "fp16": 1e-4}
    print(f"{found.shape.architecture} {precision}: {dict(found.self_check)}")
    assert 0 <= found.self_check["kl_torch"] + 1e-6 <= limits[precision]
    assert greedy(opened(found, tmp_path / "out"), PROMPTS[1])


def test_an_architecture_that_transformers_does_not_know_is_named(
    python: Path, tmp_path: Path
) -> None:
    folder = tiny.write_folder(tmp_path / "m", tiny.TINY, config={"model_type": "made_up"})
    with pytest.raises(Incompatible, match="'made_up' has no builder here, and transformers does"):
        export(Theirs(folder, [], [], python), "int8", tmp_path / "out")


def test_an_architecture_that_optimum_does_not_know_is_named(python: Path, tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "m", tiny.TINY, config={"model_type": "mamba"})
    with pytest.raises(Incompatible, match="'mamba' has no builder here, and optimum-onnx does"):
        export(Theirs(folder, [], [], python), "int8", tmp_path / "out")
