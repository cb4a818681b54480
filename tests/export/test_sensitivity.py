"""Sensitivity: what is measured is the KL of the very model with one matrix rounded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import TINY, UNTIED, Sizes

from edgellm_export import arch, reference
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.pipeline import silent
from edgellm_export.quantize import calibrate, sensitivity
from edgellm_export.quantize.sensitivity import log_softmax, measure, trial_error
from edgellm_export.weights import Float32, to_float32

IDS = np.random.default_rng(0).integers(5, 60, (2, 48))
# A stored matrix and the checkpoint's tensors in it.
TENSORS = {
    "layers.0.out": ("model.layers.0.self_attn.o_proj.weight",),
    "layers.1.down": ("model.layers.1.mlp.down_proj.weight",),
    "layers.1.qkv": tuple(f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkv"),
    "embed_tokens": ("model.embed_tokens.weight",),
}


def opened(folder: Path, sizes: Sizes) -> tuple[Checkpoint, calibrate.Model, calibrate.Stored]:
    checkpoint = open_checkpoint(tiny.write_folder(folder / "source", sizes))
    scratch = folder / "scratch"
    scratch.mkdir()
    model, stored = calibrate._import(checkpoint, arch.find("llama"), scratch)
    return checkpoint, model, stored


def expected_kl(checkpoint: Checkpoint, tensors: tuple[str, ...]) -> float:
    """By the numpy forward pass with these tensors rounded."""
    weights = {name: to_float32(checkpoint.weight(name)) for name in checkpoint.names()}
    wrong = weights | {name: weights[name] + trial_error(weights[name]) for name in tensors}
    found: list[Float32] = []
    for row in IDS[: sensitivity.WINDOWS].tolist():
        p, q = (
            log_softmax(reference.forward(checkpoint.config, w.__getitem__, row))
            for w in (weights, wrong)
        )
        rows = np.linspace(len(row) // 4, len(row) - 1, min(sensitivity.ROWS, len(row)), dtype=int)
        found.append((np.exp(p) * (p - q)).sum(axis=-1)[rows])
    return float(np.concatenate(found).mean())


def test_a_width_that_no_block_divides_can_be_tried() -> None:
    weight = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    error = trial_error(weight)
    assert error.shape == (3, 40)
    assert 0 < np.abs(error).max() < 0.25


@pytest.mark.parametrize("sizes", [TINY, UNTIED], ids=["tied", "untied"])
def test_what_is_measured_is_the_kl_of_the_model_with_that_matrix_rounded(
    tmp_path: Path, sizes: Sizes
) -> None:
    checkpoint, model, stored = opened(tmp_path, sizes)
    found = measure(model, stored.named(model), IDS, tmp_path / "kl.json", silent)
    lookups = {"embed_tokens.rows"} if sizes.tied else set()
    assert found.keys() == model.matrices.keys() | lookups
    for name, tensors in TENSORS.items():
        expected = expected_kl(checkpoint, tensors)
        assert expected > 0
        assert found[name] == pytest.approx(expected, rel=0.02, abs=1e-7)


def test_what_a_tied_embedding_costs_where_rows_are_taken_is_measured_alone(tmp_path: Path) -> None:
    checkpoint, model, stored = opened(tmp_path, TINY)
    found = measure(model, stored.named(model), IDS, tmp_path / "kl.json", silent)
    weights = {name: to_float32(checkpoint.weight(name)) for name in checkpoint.names()}
    table = weights["model.embed_tokens.weight"]
    config = checkpoint.config | {"tie_word_embeddings": False}
    wrong = {"model.embed_tokens.weight": table + trial_error(table), "lm_head.weight": table}
    p, q = (
        log_softmax(reference.forward(config, w.__getitem__, IDS[0].tolist()))
        for w in (weights | {"lm_head.weight": table}, weights | wrong)
    )
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    rows = np.linspace(12, 47, min(sensitivity.ROWS, 48), dtype=int)
    assert found["embed_tokens.rows"] == pytest.approx(float(kl[rows].mean()), rel=0.02, abs=1e-7)


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    _, model, stored = opened(tmp_path, TINY)
    kept = tmp_path / "kl.json"
    whole = measure(model, stored.named(model), IDS, kept, silent)
    left = {name: kl for name, kl in whole.items() if name != "layers.1.down"}
    kept.write_text(json.dumps(left | {"layers.0.out": 7.0}))
    read: list[str] = []

    def weight(name: str) -> Float32:
        read.append(name)
        return stored.matrix(model.matrices[name])

    again = measure(model, weight, IDS, kept, silent)
    assert read == ["layers.1.down"]
    assert again["layers.0.out"] == 7.0
    assert again["layers.1.down"] == pytest.approx(whole["layers.1.down"], rel=1e-4)
