"""GPTQ and AWQ folders: what comes out are the integers, scales and zero points of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import TINY, make_bundle

from edgellm.errors import Corrupt, EdgellmError, Incompatible
from edgellm_export.checkpoint.safetensors import SafetensorsCheckpoint
from edgellm_export.weights import Blocks, to_float32

GROUP = 32
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"}
UP = "model.layers.0.mlp.up_proj"
Parts = dict[str, np.ndarray]


def word(values: list[int], bits: int) -> int:
    """The numbers in one int32, the first in its low bits."""
    total = sum(int(value) << (bits * i) for i, value in enumerate(values))
    return total - (1 << 32) if total >= 1 << 31 else total


def gptq_parts(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int, less: int) -> Parts:
    """q (K, N), zeros and scales (G, N), packed number by number as AutoGPTQ lays them out."""
    (k, n), per = q.shape, 32 // bits
    stored = (zeros.astype(int) - less) % (1 << bits)
    return {
        "qweight": np.array(
            [[word(q[i : i + per, j], bits) for j in range(n)] for i in range(0, k, per)], np.int32
        ),
        "qzeros": np.array(
            [[word(row[j : j + per], bits) for j in range(0, n, per)] for row in stored], np.int32
        ),
        "scales": scales.astype(np.float16),
        "g_idx": np.array([i * len(scales) // k for i in range(k)], np.int32),
    }


def awq_parts(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Parts:
    def packed(rows: np.ndarray) -> np.ndarray:
        words = [
            [word([row[j + i] for i in (0, 2, 4, 6, 1, 3, 5, 7)], 4) for j in range(0, len(row), 8)]
            for row in rows
        ]
        return np.array(words, np.int32)

    return {"qweight": packed(q), "qzeros": packed(zeros), "scales": scales.astype(np.float16)}


def layers() -> list[str]:
    return [n.removesuffix(".weight") for n in tiny.weights(TINY) if n.endswith("proj.weight")]


def write(
    folder: Path, settings: dict[str, Any], group: int = GROUP, symmetric: bool = False
) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder whose layers are quantized, and what they mean: w = (q - zero) * scale, (N, K)."""
    rng = np.random.default_rng(3)
    bits, top = settings["bits"], 1 << settings["bits"]
    changes: dict[str, np.ndarray | None] = {}
    meaning = {}
    for stem in layers():
        n, k = tiny.weights(TINY)[f"{stem}.weight"].shape
        q, size = rng.integers(0, top, (k, n)), group if group > 0 else k
        zeros = rng.integers(0, top, (k // size, n)) if not symmetric else top // 2
        zeros = np.broadcast_to(zeros, (k // size, n))
        scales = rng.uniform(0.5, 1, (k // size, n)).astype(np.float16) / np.float16(4 * top)
        if settings["quant_method"] == "awq":
            parts = awq_parts(q, zeros, scales)
        else:
            less = int(settings.get("checkpoint_format") != "gptq_v2")
            parts = gptq_parts(q, zeros, scales, bits, less)
        changes |= {f"{stem}.weight": None} | {f"{stem}.{name}": v for name, v in parts.items()}
        wide = [np.repeat(part, size, axis=0) for part in (zeros, scales.astype(np.float32))]
        meaning[stem] = ((q - wide[0]) * wide[1]).astype(np.float32).T
    config = {"quantization_config": {**settings, "group_size": group}}
    return tiny.write_folder(folder, TINY, "F16", changes=changes, config=config), meaning


EVERY = [
    (GPTQ, GROUP, False),
    (GPTQ, 16, True),
    ({**GPTQ, "bits": 8}, GROUP, False),
    ({**GPTQ, "checkpoint_format": "gptq_v2"}, GROUP, False),
    (AWQ, GROUP, False),
    (AWQ, 16, False),
]


@pytest.mark.parametrize(("settings", "group", "symmetric"), EVERY)
def test_layers_mean_what_their_format_says(
    tmp_path: Path, settings: dict[str, Any], group: int, symmetric: bool
) -> None:
    folder, meaning = write(tmp_path / "source", settings, group, symmetric)
    checkpoint = SafetensorsCheckpoint(folder)
    assert checkpoint.names() == tiny.weights(TINY).keys()
    assert "quantization_config" not in checkpoint.config
    for stem, expected in meaning.items():
        blocks = checkpoint.weight(f"{stem}.weight")
        assert isinstance(blocks, Blocks)
        assert (blocks.bits, blocks.block_size) == (settings["bits"], group)
        assert (blocks.zero_points is None) == symmetric
        assert np.array_equal(blocks.dequantize(), expected)
    embedding = checkpoint.weight("model.embed_tokens.weight")
    assert embedding.shape == (tiny.vocab_size(), TINY.hidden)


@pytest.mark.parametrize("settings", [GPTQ, AWQ])
def test_a_bundle_of_them_keeps_them_as_they_are(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder, _ = write(tmp_path / "source", settings)
    made = make_bundle(folder, tmp_path / "out")
    assert made.recipe["name"] == "exact"
    assert made.self_check["exact_tensors"] == made.self_check["tensors"] == 20


def test_one_group_for_all_inputs_is_cut_into_blocks(tmp_path: Path) -> None:
    folder, meaning = write(tmp_path / "source", GPTQ, -1)
    checkpoint = SafetensorsCheckpoint(folder)
    found = checkpoint.weight("model.layers.1.mlp.down_proj.weight")
    assert isinstance(found, Blocks)
    assert found.block_size == 32
    assert np.array_equal(found.dequantize(), meaning["model.layers.1.mlp.down_proj"])


def test_settings_in_a_file_of_their_own_are_found(tmp_path: Path) -> None:
    folder, meaning = write(tmp_path / "source", GPTQ)
    config = (folder / "config.json").read_text()
    assert '"quantization_config"' in config
    (folder / "config.json").write_text(config.replace("quantization_config", "unused"))
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')
    found = SafetensorsCheckpoint(folder).weight(f"{UP}.weight")
    assert np.array_equal(to_float32(found), meaning[UP])


def test_a_bias_of_zero_is_no_tensor_of_its_own(tmp_path: Path) -> None:
    folder, _ = write(tmp_path / "source", GPTQ)
    rebuilt = rewrite(folder, {f"{UP}.bias": np.zeros(96, np.float16)})
    assert f"{UP}.bias" not in SafetensorsCheckpoint(rebuilt).names()
    rebuilt = rewrite(folder, {f"{UP}.bias": np.ones(96, np.float16)})
    assert f"{UP}.bias" in SafetensorsCheckpoint(rebuilt).names()


def rewrite(folder: Path, changes: dict[str, np.ndarray | None]) -> Path:
    """The folder with other tensors."""
    from edgellm_export.checkpoint.safetensors_file import read

    file = read(folder / "model.safetensors")
    kinds = {"I32": np.int32, "F16": np.float16}
    tensors: dict[str, np.ndarray | None] = {
        name: file.raw(t).view(kinds[t.kind]).reshape(t.shape).copy()
        for name, t in file.tensors.items()
    }
    return tiny.write_tensors(folder, tensors | changes)


def shuffled(k: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(k) // GROUP).astype(np.int32)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"g_idx": shuffled(64)}, Incompatible, "g_idx.*out of order.*desc_act"),
        ({"qzeros": None}, Corrupt, "qzeros' is missing"),
        ({"scales": None}, Corrupt, "scales' is missing"),
        ({"qzeros": np.zeros((2, 3), np.int32)}, Corrupt, r"qzeros' has shape \(2, 3\)"),
        ({"scales": np.ones((3, 96), np.float16)}, Corrupt, "does not divide"),
        ({"scales": np.full((2, 96), np.inf, np.float16)}, Corrupt, "infinite"),
        ({"qweight": np.zeros((8, 96), np.float16)}, Corrupt, "must be I32"),
        ({"qweight": np.zeros(8, np.int32)}, Corrupt, "has shape"),
        ({"qweight": np.zeros((8, 95), np.int32)}, Corrupt, "has shape"),
    ],
)
def test_a_damaged_layer_is_named(
    tmp_path: Path, changes: dict[str, Any], error: type[EdgellmError], words: str
) -> None:
    folder, _ = write(tmp_path / "source", GPTQ)
    rewrite(folder, {f"{UP}.{part}": values for part, values in changes.items()})
    with pytest.raises(error, match=words) as caught:
        SafetensorsCheckpoint(folder).weight(f"{UP}.weight")
    assert UP in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "the method 'bitsandbytes'"),
        ({"quant_method": None}, "the method None"),
        ({**GPTQ, "bits": 3}, "gptq with 3 bits"),
        ({**AWQ, "bits": 8}, "awq with 8 bits"),
        ({**AWQ, "version": "GEMV"}, "layout 'GEMV'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "layout 'marlin'"),
        ({**GPTQ, "dynamic": {"-:lm_head": {}}}, "dynamic"),
    ],
)
def test_another_kind_of_quantization_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    folder = tiny.write_folder(tmp_path, TINY, config={"quantization_config": settings})
    with pytest.raises(Incompatible, match=words) as caught:
        SafetensorsCheckpoint(folder)
    assert "\n" not in str(caught.value)
