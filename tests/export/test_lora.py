"""An adapter merged at export is base + adapter, computed; what is not LoRA is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import TINY, Kind

from edgellm.bundle.manifest import Source
from edgellm.errors import Corrupt, EdgellmError, Incompatible, NotFound
from edgellm_export import reference
from edgellm_export.checkpoint.lora import LoraCheckpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import recipe
from edgellm_export.weights import Blocks, to_float32

R, ALPHA = 4, 8
STEMS = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": R,
    "lora_alpha": ALPHA,
    "target_modules": ["q_proj", "up_proj"],
    "fan_in_fan_out": False,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "init_lora_weights": True,
}


def matrices(stems: list[str]) -> dict[str, np.ndarray]:
    """A and B of every stem, by PEFT's names."""
    rng = np.random.default_rng(11)
    found = {}
    for stem in stems:
        n, k = tiny.weights(TINY)[f"{stem}.weight"].shape
        at = f"base_model.model.{stem}"
        found[f"{at}.lora_A.weight"] = rng.standard_normal((R, k)).astype(np.float32) / 8
        found[f"{at}.lora_B.weight"] = rng.standard_normal((n, R)).astype(np.float32) / 8
    return found


def write_adapter(
    folder: Path,
    config: dict[str, Any] | None = None,
    changes: dict[str, np.ndarray | None] | None = None,
    stems: list[str] = STEMS,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    tiny.write_tensors(folder, {**matrices(stems), **(changes or {})})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    return folder


def by_hand(stem: str, scaling: float) -> np.ndarray:
    at = f"base_model.model.{stem}"
    found = matrices(STEMS)
    change = found[f"{at}.lora_B.weight"] @ found[f"{at}.lora_A.weight"]
    merged: np.ndarray = tiny.weights(TINY)[f"{stem}.weight"] + np.float32(scaling) * change
    return merged


@pytest.mark.parametrize(("rslora", "scaling"), [(False, ALPHA / R), (True, ALPHA / R**0.5)])
def test_merged_weights_are_base_plus_scaled_product(
    tmp_path: Path, rslora: bool, scaling: float
) -> None:
    base = open_checkpoint(tiny.write_folder(tmp_path / "base"))
    adapter = write_adapter(tmp_path / "adapter", {"use_rslora": rslora})
    merged = LoraCheckpoint(base, adapter)
    for stem in STEMS:
        found = to_float32(merged.weight(f"{stem}.weight"))
        assert np.allclose(found, by_hand(stem, scaling), rtol=0, atol=1e-6)
        assert not np.allclose(found, to_float32(base.weight(f"{stem}.weight")), atol=1e-3)
    other = "model.layers.0.self_attn.v_proj.weight"
    assert np.array_equal(to_float32(merged.weight(other)), to_float32(base.weight(other)))
    assert merged.names() == base.names()
    assert merged.notices == ["4 layers have the adapter adapter merged into them"]


def test_a_bundle_computes_base_plus_adapter(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "base")
    merged = LoraCheckpoint(open_checkpoint(source), write_adapter(tmp_path / "adapter"))
    built = tiny.build(merged, "fp32", tmp_path / "out")
    summed = {f"{stem}.weight": by_hand(stem, ALPHA / R) for stem in STEMS}
    weights = tiny.weights(TINY) | summed
    ids = list(range(5, 25))
    wanted = reference.forward(built.config, weights.__getitem__, ids)
    found = tiny.logits(built, ids)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    plain = reference.forward(built.config, tiny.weights(TINY).__getitem__, ids)
    assert np.abs(found - plain).max() > 0.01 * np.abs(wanted).max()


def test_merged_layers_of_a_quantized_base_become_int8_and_the_others_stay(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", TINY, Kind.Q4_1)
    adapter = write_adapter(tmp_path / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    lines: list[str] = []
    made = export_bundle(Job(source, None, Source("x"), "x", lora=adapter), out, lines.append)
    assert made.self_check["exact_tensors"] == made.self_check["tensors"] - len(STEMS)
    assert 0 < made.self_check["weights_rms_error"] < 0.01
    assert made.recipe["name"] == "exact"
    assert made.recipe["lora"] == "adapter"
    told = "4 changed layers become int8, symmetric blocks of 32, round to nearest"
    assert f"{told}; the others stay exact" in lines
    merged = LoraCheckpoint(open_checkpoint(source), adapter)
    assert isinstance(merged.weight("model.layers.0.self_attn.k_proj.weight"), Blocks)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "exact"])
def test_every_precision_takes_an_adapter(tmp_path: Path, precision: str) -> None:
    source = tiny.write_folder(tmp_path / "base", dtype="F16")
    adapter, out = write_adapter(tmp_path / "adapter"), tmp_path / "out"
    out.mkdir()
    job = Job(source, recipe(precision), Source("x"), "x", lora=adapter)
    assert export_bundle(job, out).self_check["tensors"] == 20


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*base model as well"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    refused(tmp_path, Incompatible, words, config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 0}, "r must be"),
        ({"r": True}, "r must be"),
        ({"lora_alpha": None}, "lora_alpha must be"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be"),
    ],
)
def test_impossible_numbers_are_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    refused(tmp_path, Corrupt, words, config)


AT = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({f"{AT}.lora_A.weight": None}, Corrupt, "lacks one of lora_A and lora_B"),
        ({f"{AT}.lora_magnitude_vector": np.ones(64)}, Incompatible, "lora_magnitude_vector"),
        (
            {f"{AT}.lora_A.weight": np.ones((R, 65), np.float32)},
            Incompatible,
            r"shape \(4, 65\), this model needs \(4, 64\)",
        ),
        (
            {f"{AT}.lora_B.weight": np.full((64, R), np.nan, np.float32)},
            Corrupt,
            r"q_proj\.lora_B\.weight' holds infinite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], error: type[EdgellmError], words: str
) -> None:
    refused(tmp_path, error, words, changes=changes)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.7.mlp.up_proj"
    extra = {f"{name}.lora_{part}.weight": np.ones((R, R), np.float32) for part in "AB"}
    refused(tmp_path, Incompatible, "layers.7.mlp.up_proj', which this model", changes=extra)


def refused(
    tmp_path: Path,
    error: type[EdgellmError],
    words: str,
    config: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    base = open_checkpoint(tiny.write_folder(tmp_path / "base"))
    adapter = write_adapter(tmp_path / "adapter", config, changes)
    with pytest.raises(error, match=words) as caught:
        to_float32(LoraCheckpoint(base, adapter).weight("model.layers.0.self_attn.q_proj.weight"))
    assert "\n" not in str(caught.value)


def test_a_missing_adapter_is_not_found(tmp_path: Path) -> None:
    base = open_checkpoint(tiny.write_folder(tmp_path / "base"))
    with pytest.raises(NotFound, match="no adapter folder"):
        LoraCheckpoint(base, tmp_path / "nowhere")
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(NotFound, match=r"has no adapter_model\.safetensors.*pickle"):
        LoraCheckpoint(base, adapter)
