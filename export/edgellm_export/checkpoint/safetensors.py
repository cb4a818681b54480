"""A Hugging Face folder with safetensors as a Checkpoint; shards and their pages load lazily."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint import TextFiles, prequantized
from edgellm_export.checkpoint import safetensors_file as container
from edgellm_export.checkpoint.config import check_config
from edgellm_export.checkpoint.folder import (
    CONFIG_LIMIT_BYTES,
    TOKENIZER_LIMIT_BYTES,
    inside,
    parse_object,
    read_object,
    read_text,
)
from edgellm_export.checkpoint.mapped import AGAIN, all_finite, release, shown, widen_bfloat16
from edgellm_export.checkpoint.shapes import check_shapes
from edgellm_export.weights import Dense, Float32, Weight

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# An index has one line of 100 bytes for each tensor.
INDEX_LIMIT_BYTES = 16 << 20
SHARD_LIMIT = 1024
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsCheckpoint:
    """See `Checkpoint`. `notices` are lines the user should see."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.notices: list[str] = []
        raw = read_object(folder, "config.json")
        if raw.pop("auto_map", None) is not None:
            self.notices.append(
                "config.json names custom code (auto_map): it is ignored, never run"
            )
        self._files = _files(folder)
        where = str(folder / "config.json")
        settings = raw.pop("quantization_config", None) or _separate_settings(folder)
        self._scheme = prequantized.scheme(settings, where) if settings else None
        self._layers = prequantized.stems(self._files) if self._scheme else frozenset()
        self.quantized = bool(self._layers)
        tied = {"tie_word_embeddings": "lm_head.weight" not in self._files}
        self.config: Mapping[str, Any] = check_config(tied | raw, where)
        check_shapes(self.config, self._shapes(), str(folder))
        self.licence = licence(folder)

    def names(self) -> frozenset[str]:
        """Also without the biases of zero that AutoGPTQ gives layers that have none."""
        plain = {prequantized.plain_name(name, self._layers) for name in self._files}
        biases = [f"{stem}.bias" for stem in self._layers if f"{stem}.bias" in plain]
        return frozenset(plain - {name for name in biases if self._is_zero(name)})

    def weight(self, name: str) -> Weight:
        """One tensor; see `Checkpoint.weight`."""
        stem = name.removesuffix(".weight")
        if self._scheme is not None and stem in self._layers:
            return prequantized.load(self._scheme, self._files, stem)
        file = self._files.get(name)
        if file is None:
            raise Corrupt(f"{self.path} has no tensor {name}; {AGAIN}")
        tensor = file.tensors[name]
        if tensor.kind not in DTYPES:
            raise Incompatible(
                f"{file.path}: tensor {shown(name)} has dtype {tensor.kind}; F32, F16 and BF16 are "
                "read, so use the original float weights or a GGUF file"
            )

        def read() -> Float32:
            values = read_floats(file, tensor)
            release(file.data, tensor.offset, tensor.size_bytes)
            all_finite(file.path, name, values)
            return values

        return Dense(tensor.shape, DTYPES[tensor.kind], read)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {name: file.tensors[name].shape for name, file in self._files.items()}
        if self._scheme is not None:
            for stem in self._layers:
                file = self._files[f"{stem}.qweight"]
                shapes[f"{stem}.weight"] = prequantized.shape(self._scheme, file, stem)
        return shapes

    def _is_zero(self, name: str) -> bool:
        file = self._files[name]
        return not file.raw(file.tensors[name]).any()

    def text_files(self) -> TextFiles:
        return text_files(self.path)


def text_files(folder: Path) -> TextFiles:
    """Tokenizer, template and settings as they are; Incompatible without a tokenizer."""
    tokenizer = read_text(folder, "tokenizer.json", TOKENIZER_LIMIT_BYTES)
    if tokenizer is None:
        raise Incompatible(
            f"{folder} has no tokenizer.json; make one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    parse_object(tokenizer, folder / "tokenizer.json")
    settings = _optional(folder, "tokenizer_config.json")
    template = read_text(folder, "chat_template.jinja", CONFIG_LIMIT_BYTES)
    if template is None:
        template = _template(settings.get("chat_template"), folder)
    return TextFiles(tokenizer, settings, template, _optional(folder, "generation_config.json"))


def _files(folder: Path) -> dict[str, container.SafetensorsFile]:
    """The file of every tensor."""
    if inside(folder, SINGLE).exists():
        file = container.read(folder / SINGLE)
        return dict.fromkeys(file.tensors, file)
    weight_map = read_object(folder, INDEX, INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise Corrupt(f"{folder / INDEX} needs a weight_map of tensor names to files; {AGAIN}")
    shards = sorted(set(weight_map.values()))
    if len(shards) > SHARD_LIMIT:
        raise Corrupt(f"{folder / INDEX} names {len(shards)} files, above {SHARD_LIMIT}; {AGAIN}")
    missing = [shard for shard in shards if not inside(folder, shard).exists()]
    if missing:
        raise Corrupt(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files, "
            f"first {shown(missing[0])}; {AGAIN}"
        )
    files = {shard: container.read(folder / shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in files[shard].tensors:
            raise Corrupt(f"{folder / shard} lacks tensor {shown(name)} of the index; {AGAIN}")
    return {name: files[shard] for name, shard in weight_map.items()}


def _separate_settings(folder: Path) -> dict[str, Any]:
    """What older AutoGPTQ wrote beside config.json instead of into it."""
    settings = _optional(folder, "quantize_config.json")
    return {"quant_method": "gptq", **settings} if settings else {}


def read_floats(file: container.SafetensorsFile, tensor: container.Tensor) -> Float32:
    """The float32 values of a tensor of DTYPES."""
    raw = file.raw(tensor)
    if tensor.kind == "BF16":
        return widen_bfloat16(raw).reshape(tensor.shape)
    stored = raw.view("<f4" if tensor.kind == "F32" else "<f2")
    return stored.astype(np.float32).reshape(tensor.shape)


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder, name) if inside(folder, name).exists() else {}


def _template(value: Any, folder: Path) -> str | None:
    """The template in tokenizer_config.json: one text, or a list of named ones."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        value = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    if value is not None and not isinstance(value, str):
        raise Corrupt(f"{folder / 'tokenizer_config.json'}: chat_template must be a text; {AGAIN}")
    return value


def licence(folder: Path) -> str | None:
    """The `license` line of the model card's front matter, if there is one."""
    card = folder / "README.md"
    if card.is_symlink() or not card.is_file():
        return None
    with card.open("rb") as file:
        lines = file.read(1 << 16).decode(errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("'\"")[:80] or None
    return None
