"""Our numpy forward passes and our graphs against Hugging Face's own code, on the same files.

Needs torch and transformers, which are no dependencies of this project: in an environment of their
own, `pip install torch transformers '.[cpu,export,test]' && pytest tests/targets -rA`. Where they
cannot be imported the tests skip and say so.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# importmode=importlib leaves that folder out of the path.
sys.path.append(str(Path(__file__).parent.parent / "export"))

import tiny_architectures
import tiny_models

from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm_export import reference
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.weights import Float32, to_float32

IDS = np.random.default_rng(5).integers(0, tiny_models.vocab_size(), 40).tolist()
# Relative to the largest logit: float32 sums in another order, and torch's float32 rotary angles.
LIMIT = 2e-5

LINEAR = {"rope_type": "linear", "factor": 4.0}
# Each is a folder as Hugging Face has it.
MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda folder: tiny_models.write_folder(folder, tiny_models.WIDE_HEADS),
    "llama, llama3 scaling": lambda folder: tiny_models.write_folder(folder, tiny_models.LONG),
    "llama, linear scaling": lambda folder: tiny_models.write_folder(
        folder, replace(tiny_models.UNTIED, rope_scaling=LINEAR)
    ),
    "mistral, no window": lambda folder: tiny_architectures.write_folder(
        folder, "mistral", sliding_window=None
    ),
    "smollm3, listed layers": lambda folder: tiny_architectures.write_folder(
        folder, "smollm3", no_rope_layers=[0, 1, 1, 0]
    ),
    **{
        name: lambda folder, name=name: tiny_architectures.write_folder(folder, name)
        for name in tiny_architectures.CONFIGS
    },
}


@pytest.fixture(scope="module")
def torch() -> Any:
    return _module("torch")


@pytest.fixture(scope="module")
def transformers() -> Any:
    return _module("transformers")


def _module(name: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported ({error}); see the head of this file")


def theirs(folder: Path, torch: Any, transformers: Any) -> Float32:
    """Logits (T, V) by the class that config.json names, float32 on the CPU."""
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
        assert not any(loading.get(key) for key in ("missing_keys", "unexpected_keys"))
        logits: Float32 = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_logits(
    tmp_path: Path, name: str, torch: Any, transformers: Any
) -> None:
    folder = MODELS[name](tmp_path / "source")
    wanted = theirs(folder, torch, transformers)
    checkpoint = open_checkpoint(folder)
    numpy = reference.forward(
        checkpoint.config, lambda tensor: to_float32(checkpoint.weight(tensor)), IDS
    )
    built = tiny_models.build(checkpoint, "fp32", tmp_path / "out")
    session = Session(built.exact, built.shape, LoadOptions(threads=1))
    graph = session.forward(IDS, range(len(IDS)), KVCache(built.shape, len(IDS)))
    largest = np.abs(wanted).max()
    errors = [float(np.abs(found - wanted).max() / largest) for found in (numpy, graph)]
    print(f"{name}: numpy {errors[0]:.1e}, graph {errors[1]:.1e} of the largest logit")
    assert max(errors) <= LIMIT
