"""GGUF files of Gemma 2 and 3, Phi-3 and Qwen3-MoE are the same models as their folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_archs as archs
import tiny_ggufs as ggufs
import tiny_models as tiny
from gguf import GGMLQuantizationType as Kind

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.weights import Blocks, to_float32

IDS = list(range(5, 29))
# float32 of (w + 1) - 1, for the norms of Gemma; of the root that Phi's long-rope multiplies with.
ROUNDING = 1e-5


@pytest.mark.parametrize("name", ggufs.CONFIGS)
def test_a_gguf_file_and_a_folder_of_the_same_numbers_are_the_same_model(
    tmp_path: Path, name: str
) -> None:
    paths = archs.write(tmp_path / "folder", ggufs.CONFIGS[name]), tmp_path / "m.gguf"
    ggufs.write(paths[1], name)
    one, two = (
        tiny.logits(tiny.build(open_checkpoint(path), "fp32", tmp_path / f"{i}"), IDS)
        for i, path in enumerate(paths)
    )
    assert np.abs(one - two).max() < ROUNDING * np.abs(one).max()


@pytest.mark.parametrize("name", ggufs.CONFIGS)
def test_its_blocks_pass_the_self_check(tmp_path: Path, name: str) -> None:
    path = ggufs.write(tmp_path / "m.gguf", name, Kind.Q8_0)
    report = tiny.make_bundle(path, tmp_path / "out", "exact").self_check
    # Of the tensors nothing is rounded but the norms that are counted from 1.
    assert report["exact_tensors"] == report["tensors"]
    assert report["logits_error_float32"] < 1e-4


def test_each_expert_has_its_own_blocks(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(ggufs.write(tmp_path / "m.gguf", "qwen3moe", Kind.Q8_0))
    wanted = archs.tensors(ggufs.CONFIGS["qwen3moe"])
    for expert in (0, 3, 7):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        weight = checkpoint.weight(name)
        assert isinstance(weight, Blocks)
        assert np.abs(to_float32(weight) - wanted[name]).max() < 0.01
    assert not [line for line in checkpoint.notices if "dequantized" in line]


def test_norms_come_back_as_hugging_face_has_them(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(ggufs.write(tmp_path / "m.gguf", "gemma3"))
    wanted = archs.tensors(ggufs.CONFIGS["gemma3"])
    for name in ("model.norm.weight", "model.layers.2.self_attn.q_norm.weight"):
        assert np.abs(to_float32(checkpoint.weight(name)) - wanted[name]).max() < 1e-6


def test_gemma_3_without_a_window_has_no_local_layers(tmp_path: Path) -> None:
    keys = {"attention.sliding_window": 0, "attention.sliding_window_pattern": 1}
    config = open_checkpoint(ggufs.write(tmp_path / "m.gguf", "gemma3", **keys)).config
    assert config["sliding_window"] is None
    assert config["sliding_window_pattern"] == 1


@pytest.mark.parametrize("count", [7, 9, 4_000_000_000])
def test_a_number_of_experts_that_the_tensors_do_not_have_is_refused(
    tmp_path: Path, count: int
) -> None:
    path = ggufs.write(tmp_path / "m.gguf", "qwen3moe", expert_count=count)
    with pytest.raises(Corrupt, match=rf"_exps.*promises {count} experts"):
        open_checkpoint(path)


def test_experts_where_the_architecture_has_none_are_refused(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "m.gguf", "gemma2", expert_count=8)
    with pytest.raises(Incompatible, match="mixture of experts, which is read for qwen3moe only"):
        open_checkpoint(path)
