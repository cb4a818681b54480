"""The small files beside the graphs: what other runtimes read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.bundle.manifest import Shape
from edgellm_export.checkpoint import Checkpoint, TextFiles

# onnxruntime-genai allocates its whole cache from this; the model's own maximum would take
# hundreds of megabytes before the first token.
GENAI_MAX_TOKENS = 4096
# What transformers.js calls the precision of a file by that suffix (its src/utils/dtypes.js).
TRANSFORMERS_JS_DTYPES = {
    "": "fp32",
    "_fp16": "fp16",
    "_quantized": "q8",
    "_q4": "q4",
    "_q4f16": "q4f16",
}
# The words of a byte-level pre-tokenizer (huggingface/tokenizers, pre_tokenizers/byte_level.rs).
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# It refuses a decoder whose name it does not know (src/models/model_type.h), and runs all alike.
GENAI_TYPES = {"olmo2": "olmo", "qwen3_moe": "qwen3"}
# Keys whose null is not "left out": transformers would take Mistral's window of 4096 for that.
MEANT_NULLS = ("sliding_window",)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_configs(
    folder: Path,
    checkpoint: Checkpoint,
    shape: Shape,
    portable: str,
    sampling: Mapping[str, Any],
    genai: bool = True,
) -> None:
    """Every file that is not a graph, weights or the manifest; `portable` is the graph's path.
    `genai`: onnxruntime-genai can run it."""
    text = checkpoint.text_files()
    generation = _generation(checkpoint.config, sampling, text.generation_config)
    tokenizer_json = _tokenizer_json(text.tokenizer_json)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    _json(folder / "tokenizer_config.json", _tokenizer_config(text))
    _json(folder / "generation_config.json", generation)
    _json(folder / "config.json", _config(checkpoint, portable))
    if genai:
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


def _tokenizer_json(text: str) -> str:
    """The tokenizer with single digits and byte-level words spelled as two regular expressions.

    That is what `tokenizers` does for the pair in SmolLM2's file. transformers.js takes its Digits
    for 0 to 9 only, and onnxruntime-genai splits spaces before a digit otherwise: both give other
    ids for text as plain as "=  42". Any other tokenizer stays as it is, byte for byte.
    """
    tokenizer = json.loads(text)
    match tokenizer.get("pre_tokenizer"):
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False} as byte_level,
            ],
        } if byte_level.get("use_regex", True):
            steps = [_split(r"\p{N}"), _split(GPT2_WORDS), {**byte_level, "use_regex": False}]
            tokenizer["pre_tokenizer"]["pretokenizers"] = steps
            return json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n"
    return text


def _split(pattern: str) -> dict[str, Any]:
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


def _tokenizer_config(text: TextFiles) -> dict[str, Any]:
    """The model's own, with what other loaders do not guess (tests/targets holds them to it).

    transformers.js reads a chat template only here. onnxruntime-genai drops the template when no
    class is named, transformers 4 knows no TokenizersBackend and would feed token_type_ids.
    """
    config = {"model_input_names": ["input_ids", "attention_mask"], **text.tokenizer_config}
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if text.chat_template is not None:
        config["chat_template"] = text.chat_template
    return config


def _config(checkpoint: Checkpoint, portable: str) -> dict[str, Any]:
    """Hugging Face's own keys, and what transformers.js needs to find graph and weights."""
    file_name = portable.rpartition("/")[2]
    said = checkpoint.config.items()
    config = {key: value for key, value in said if value is not None or key in MEANT_NULLS}
    external = {"use_external_data_format": {file_name: 1}}
    dtype = TRANSFORMERS_JS_DTYPES[file_name.removeprefix("model").removesuffix(".onnx")]
    return {**config, "transformers.js_config": {"dtype": dtype, **external}}


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
