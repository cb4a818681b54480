"""The small files beside the graphs: what other runtimes read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm_export.checkpoint import Checkpoint

# onnxruntime-genai allocates its whole cache from this; the model's own maximum would take
# hundreds of megabytes before the first token.
GENAI_MAX_TOKENS = 4096
# It refuses a decoder whose name it does not know (src/models/model_type.h), and runs all alike.
GENAI_TYPES = {"olmo2": "olmo", "qwen3_moe": "qwen3"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_configs(
    folder: Path,
    checkpoint: Checkpoint,
    shape: Shape,
    portable: str,
    sampling: Mapping[str, Any],
) -> None:
    """Every file that is not a graph, weights or the manifest; `portable` is the graph's path."""
    text = checkpoint.text_files()
    generation = _generation(checkpoint.config, sampling, text.generation_config)
    (folder / "tokenizer.json").write_text(text.tokenizer_json, encoding="utf-8")
    _json(folder / "tokenizer_config.json", text.tokenizer_config)
    _json(folder / "generation_config.json", generation)
    _json(folder / "config.json", _config(checkpoint, portable))
    _json(folder / "genai_config.json", _genai(shape, portable, generation))
    if text.chat_template is not None:
        (folder / "chat_template.jinja").write_text(text.chat_template, encoding="utf-8")


def _generation(
    config: Mapping[str, Any], recommended: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """The model's own settings, else the recommended ones, else the token ids of its config:
    without a generation_config.json nothing else says what ends an answer."""
    ids = {key: config.get(key) for key in TOKEN_IDS}
    said = {key: value for key, value in own.items() if value is not None}
    merged = {**ids, **recommended, **said}
    return {key: value for key, value in merged.items() if value is not None}


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(checkpoint: Checkpoint, portable: str) -> dict[str, Any]:
    """Hugging Face's own keys, and what transformers.js needs to find the weights file."""
    file_name = portable.rpartition("/")[2]
    config = {key: value for key, value in checkpoint.config.items() if value is not None}
    return {**config, "transformers.js_config": {"use_external_data_format": {file_name: 1}}}


def _genai(shape: Shape, portable: str, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as onnxruntime-genai's model builder writes them (src/config.h names them all)."""
    ids = {key: generation[key] for key in TOKEN_IDS if key in generation}
    decoder = {
        "session_options": {"provider_options": []},
        "filename": portable,
        "head_size": shape.head_dim,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        **ids,
        "type": GENAI_TYPES.get(shape.architecture, shape.architecture),
        "vocab_size": shape.vocab_size,
        "context_length": shape.context_length,
        "decoder": decoder,
    }
    search = {
        "do_sample": False,
        "max_length": min(shape.context_length, GENAI_MAX_TOKENS),
        "min_length": 0,
        "num_beams": 1,
        "past_present_share_buffer": True,
    }
    return {"model": model, "search": search}
