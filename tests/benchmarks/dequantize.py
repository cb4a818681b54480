"""A Hugging Face folder with float32 weights from a GGUF file, for tools that read nothing else.

    python tests/benchmarks/dequantize.py model.gguf hf-folder

The values are those that the file's blocks stand for, so whatever is made of the folder has the
same weights as what is made of the file.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - puts this checkout's packages on the path

from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.weights import to_float32

# What transformers calls the classes of an architecture; edgellm has no use for the name.
ARCHITECTURES = {"llama": "LlamaForCausalLM"}


def write_folder(source: Path, folder: Path) -> None:
    """Fills `folder` with config, tokenizer and one safetensors file of float32 tensors."""
    checkpoint = open_checkpoint(source)
    folder.mkdir(parents=True, exist_ok=True)
    text = checkpoint.text_files()
    config = {key: value for key, value in checkpoint.config.items() if value is not None}
    names = {"architectures": [ARCHITECTURES[config["model_type"]]], "torch_dtype": "float32"}
    _json(folder / "config.json", {**config, **names})
    _json(folder / "generation_config.json", text.generation_config)
    _json(folder / "tokenizer_config.json", text.tokenizer_config)
    (folder / "tokenizer.json").write_text(text.tokenizer_json, encoding="utf-8")
    _write_safetensors(folder / "model.safetensors", checkpoint)


def _write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Length of the header, header, tensors one after another (huggingface/safetensors README)."""
    names = sorted(checkpoint.names())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        shape = checkpoint.weight(name).shape
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": [*shape], "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            file.write(to_float32(checkpoint.weight(name)).astype("<f4").tobytes())
    part.replace(path)


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/benchmarks/dequantize.py MODEL.gguf FOLDER")
    write_folder(Path(sys.argv[1]), Path(sys.argv[2]))
