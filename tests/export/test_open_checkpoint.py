"""Which reader a path gets, what is refused, and what a config may say."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgellm.errors import Corrupt, EdgellmError, Incompatible, NotFound
from edgellm_export.checkpoint.config import check_config
from edgellm_export.checkpoint.gguf import GgufCheckpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.checkpoint.safetensors import SafetensorsCheckpoint

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 10,
}


def safetensors_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    entry = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    raw = struct.pack("<Q", len(header)) + header + np.ones(8, np.float32).tobytes()
    (folder / "model.safetensors").write_bytes(raw)
    return folder


def gguf_file(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("embedding_length", 8),
        ("block_count", 1),
        ("context_length", 32),
        ("feed_forward_length", 12),
        ("attention.head_count", 2),
    ):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.ones((10, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_known_by_its_content(tmp_path: Path) -> None:
    assert isinstance(open_checkpoint(gguf_file(tmp_path / "m.gguf")), GgufCheckpoint)
    blob = tmp_path / "b179c952"  # the store and other caches name files by their hash
    (tmp_path / "m.gguf").rename(blob)
    assert isinstance(open_checkpoint(blob), GgufCheckpoint)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    gguf_file(tmp_path / "m.gguf")
    assert open_checkpoint(tmp_path).path == tmp_path / "m.gguf"
    gguf_file(tmp_path / "n.gguf")
    with pytest.raises(Incompatible, match=r"2 GGUF files; name one, such as m.gguf"):
        open_checkpoint(tmp_path)


def test_a_hugging_face_folder_wins_over_a_gguf_file_in_it(tmp_path: Path) -> None:
    gguf_file(safetensors_folder(tmp_path) / "m.gguf")
    assert isinstance(open_checkpoint(tmp_path), SafetensorsCheckpoint)


def test_custom_code_is_ignored_and_the_user_is_told(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit")
    folder = safetensors_folder(tmp_path, auto_map={"AutoModel": "evil.Model"})
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    assert checkpoint.notices == [
        "config.json names custom code (auto_map): it is ignored, never run"
    ]
    assert "auto_map" not in checkpoint.config


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "x.pkl"])
def test_pickle_is_never_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(Incompatible, match="pickle is never loaded; convert to safetensors"):
            open_checkpoint(path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(NotFound, match=r"no model.safetensors"):
        open_checkpoint(tmp_path)
    (safetensors_folder(tmp_path) / "config.json").unlink()
    with pytest.raises(NotFound, match=r"no config.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(Incompatible, match="name the folder it came in"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_path_the_system_refuses_is_one_line() -> None:
    with pytest.raises(EdgellmError):
        open_checkpoint(Path("x" * 5000))


def test_defaults_are_filled_in() -> None:
    checked = check_config(CONFIG, "config.json")
    assert (checked["num_key_value_heads"], checked["head_dim"]) == (2, 4)
    assert (checked["rope_theta"], checked["rope_scaling"]) == (10000.0, None)
    # -1 meant none in Llama's first configs.
    assert "pad_token_id" not in check_config(CONFIG | {"pad_token_id": -1}, "config.json")
    assert check_config(CONFIG | {"torch_dtype": "bfloat16"}, "c")["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("given", "scaling"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0},
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, None),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5}},
            {"rope_type": "yarn", "factor": 4.0},
        ),
    ],
)
def test_every_spelling_of_rope_settings_becomes_one(given: dict[str, Any], scaling: Any) -> None:
    checked = check_config(CONFIG | given, "config.json")
    assert checked["rope_scaling"] == scaling
    assert checked["rope_theta"] == (5e5 if "rope_parameters" in given else 1e4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -8),
        ("hidden_size", 8.0),
        ("hidden_size", "8"),
        ("hidden_size", True),
        ("hidden_size", 1 << 40),
        ("hidden_size", 7),
        ("intermediate_size", [12]),
        ("num_hidden_layers", 1 << 30),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("head_dim", 3),
        ("head_dim", 1 << 20),
        ("max_position_embeddings", 1 << 40),
        ("vocab_size", 1 << 30),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", -1.0),
        ("rope_theta", float("inf")),
        ("rope_theta", 10**400),
        ("rope_scaling", [1]),
        ("rope_parameters", 3),
        ("model_type", 3),
        ("architectures", "LlamaForCausalLM"),
        ("tie_word_embeddings", "yes"),
        ("eos_token_id", 10),
        ("eos_token_id", [1, -1]),
        ("bos_token_id", 1.5),
    ],
)
def test_a_value_that_cannot_be_is_named_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(Corrupt, match=key) as caught:
        check_config(CONFIG | {key: value}, "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": None, "model_type": "gpt2"}, "missing; model type 'gpt2'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized safetensors"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "differ by layer"),
    ],
)
def test_a_model_of_another_kind_is_incompatible(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Incompatible, match=words):
        check_config(CONFIG | change, "config.json")


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf"), 10**400])
def test_rope_factors_are_positive_numbers(factor: float) -> None:
    scaling = {"rope_type": "linear", "factor": factor}
    with pytest.raises(Corrupt, match="rope scaling 'factor' cannot be"):
        check_config(CONFIG | {"rope_scaling": scaling}, "config.json")
