"""Tiny seeded Llama models as real files: safetensors folders and GGUF, with a real tokenizer.

Names and shapes are Hugging Face's; GGUF files are written by gguf's own writer and quantizers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgellm.bundle.manifest import Manifest, Shape, Source
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm_export import arch, io
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.data import DataFile
from edgellm_export.graph import EXACT, FAST, Graph
from edgellm_export.pipeline import Job, export_bundle, silent
from edgellm_export.recipe import recipe
from edgellm_export.store import WeightStore
from edgellm_export.stored import StoredWeights

Array = NDArray[Any]
END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["the quick brown fox jumps over the lazy dog", "in the year that the water was there"] * 8
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Sizes:
    """What makes one tiny model different from another."""

    hidden: int = 64
    inner: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    width: int = 16
    context: int = 256
    tied: bool = True
    rope_scaling: Mapping[str, Any] | None = None
    seed: int = 0

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.width,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "vocab_size": vocab_size(),
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **({"rope_scaling": dict(self.rope_scaling)} if self.rope_scaling else {}),
        }


TINY = Sizes()
UNTIED = replace(TINY, tied=False, seed=1)
# Heads as wide as in Qwen3: not hidden / heads.
WIDE_HEADS = replace(TINY, width=32, seed=2)
ONE_KV_HEAD = replace(TINY, kv_heads=1, seed=3)
ALL_KV_HEADS = replace(TINY, kv_heads=4, seed=4)
LONG = replace(TINY, rope_scaling=LLAMA3, seed=5)
# Wide enough for GGUF's blocks of 256.
SUPER = replace(TINY, hidden=256, inner=256, width=64, seed=6)


def weights(sizes: Sizes) -> dict[str, NDArray[np.float32]]:
    """Seeded random tensors, by Hugging Face's names."""
    rng = np.random.default_rng(sizes.seed)

    def matrix(out: int, inner: int) -> NDArray[np.float32]:
        return (rng.standard_normal((out, inner)) / np.sqrt(inner)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(sizes.hidden)).astype(np.float32)

    hidden, inner, width = sizes.hidden, sizes.inner, sizes.width
    found = {"model.embed_tokens.weight": matrix(vocab_size(), hidden), "model.norm.weight": norm()}
    if not sizes.tied:
        found["lm_head.weight"] = matrix(vocab_size(), hidden)
    for i in range(sizes.layers):
        at = f"model.layers.{i}"
        found |= {
            f"{at}.input_layernorm.weight": norm(),
            f"{at}.self_attn.q_proj.weight": matrix(sizes.heads * width, hidden),
            f"{at}.self_attn.k_proj.weight": matrix(sizes.kv_heads * width, hidden),
            f"{at}.self_attn.v_proj.weight": matrix(sizes.kv_heads * width, hidden),
            f"{at}.self_attn.o_proj.weight": matrix(hidden, sizes.heads * width),
            f"{at}.post_attention_layernorm.weight": norm(),
            f"{at}.mlp.gate_proj.weight": matrix(inner, hidden),
            f"{at}.mlp.up_proj.weight": matrix(inner, hidden),
            f"{at}.mlp.down_proj.weight": matrix(hidden, inner),
        }
    return found


@cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE in the manner of SmolLM2, with very few merges."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT, TURN, END_OF_TURN],
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def vocab_size() -> int:
    return int(tokenizer().get_vocab_size())


def write_folder(
    folder: Path,
    sizes: Sizes = TINY,
    dtype: str = "F32",
    shards: int = 1,
    changes: Mapping[str, Array | None] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """`folder` as Hugging Face has it. `changes` replaces tensors; None removes one."""
    tensors: dict[str, Array | None] = {**weights(sizes), **(changes or {})}
    kept = {name: values for name, values in tensors.items() if values is not None}
    return write_model(folder, {**sizes.config(), **(config or {})}, kept, dtype, shards)


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    kept: Mapping[str, Array],
    dtype: str = "F32",
    shards: int = 1,
) -> Path:
    """`folder` as Hugging Face has any model, with the tiny tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "config.json", config)
    _json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    special = {"bos_token": TURN, "eos_token": END_OF_TURN, "chat_template": TEMPLATE}
    _json(folder / "tokenizer_config.json", special)
    (folder / "tokenizer.json").write_text(tokenizer().to_str(), encoding="utf-8")
    names = sorted(kept)
    if shards == 1:
        return write_tensors(folder, kept, dtype)
    files = {
        n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(names)
    }
    for file in set(files.values()):
        mine = [name for name in names if files[name] == file]
        (folder / file).write_bytes(_safetensors(kept, mine, dtype))
    _json(folder / "model.safetensors.index.json", {"weight_map": files})
    return folder


def write_tensors(folder: Path, tensors: Mapping[str, Array | None], dtype: str = "F32") -> Path:
    """`folder` with these as its only weights."""
    kept = {name: values for name, values in tensors.items() if values is not None}
    (folder / "model.safetensors").write_bytes(_safetensors(kept, sorted(kept), dtype))
    return folder


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _safetensors(tensors: Mapping[str, Array], names: Sequence[str], dtype: str) -> bytes:
    """Float32 arrays as `dtype`, others as they are."""
    own = {"int32": "I32", "float16": "F16"}
    entries, data = {}, b""
    for name in names:
        kind = own.get(str(tensors[name].dtype), dtype)
        raw = _raw(tensors[name], kind)
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": kind, "shape": tensors[name].shape, "data_offsets": offsets}
        data += raw
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def _raw(values: Array, dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": np.float32, "F16": np.float16, "I32": np.int32}[dtype]).tobytes()


def write_gguf(
    path: Path,
    sizes: Sizes = TINY,
    kind: Kind = Kind.Q4_1,
    embedding: Kind = Kind.Q8_0,
    changes: Mapping[str, Array] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Path:
    """The same model as a GGUF file: matrices of `kind`, norms F32.

    `kinds` has other types for parts of names ("v_proj"). Types that gguf cannot quantize hold
    random numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.width)
    writer.add_value_length(sizes.width)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    _add_tokenizer(writer)
    for name, values in (weights(sizes) | dict(changes or {})).items():
        theirs, rows = _gguf_tensor(name, values, sizes)
        outer = theirs in ("token_embd.weight", "output.weight")
        chosen = Kind.F32 if rows.ndim == 1 else embedding if outer else kind
        if rows.ndim == 2:
            chosen = next((k for part, k in (kinds or {}).items() if part in name), chosen)
        data = quantized(rows, chosen)
        writer.add_tensor(theirs, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Where types that gguf cannot quantize have their float16 scales, and values for weights near 0.06.
_SCALES: Mapping[Kind, Mapping[int, float]] = {
    Kind.Q2_K: {80: 6e-3, 82: 9e-3},
    Kind.Q3_K: {108: 1.5e-3},
    Kind.Q4_K: {0: 4e-4, 2: 3e-3},
    Kind.Q5_K: {0: 2e-4, 2: 3e-3},
    Kind.Q6_K: {208: 5e-5},
    Kind.IQ4_NL: {0: 1e-3},
    Kind.IQ4_XS: {0: 5e-5},
    Kind.IQ2_XXS: {0: 5e-4},
}


def quantized(values: Array, kind: Kind) -> Array:
    """GGUF bytes of `values` (N, K); random ones, seeded by the shape, where gguf cannot."""
    if kind not in _SCALES:
        return gguf.quants.quantize(values, kind)
    width, size = gguf.constants.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng([kind, *values.shape])
    raw = rng.integers(0, 256, (len(values), values.shape[1] // width, size), np.uint8)
    for offset, scale in _SCALES[kind].items():
        spread = scale * rng.uniform(0.7, 1.3, (*raw.shape[:2], 1))
        raw[..., offset : offset + 2] = spread.astype(np.float16).view(np.uint8)
    return raw.reshape(len(values), -1)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    model = json.loads(tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_tensor(name: str, values: Array, sizes: Sizes) -> tuple[str, Array]:
    """GGUF's name, and its row order: q and k as llama.cpp's convert_hf_to_gguf.py permutes."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{_GGUF_NAMES[stem]}.weight", values
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    heads = {"self_attn.q_proj": sizes.heads, "self_attn.k_proj": sizes.kv_heads}.get(part)
    if heads is not None:
        rows, inner = values.shape
        split = values.reshape(heads, 2, rows // heads // 2, inner)
        values = split.swapaxes(1, 2).reshape(rows, inner)
    return f"blk.{layer}.{_GGUF_NAMES[part]}.weight", values


@dataclass(frozen=True)
class Built:
    """Graphs over one data file, and the weights as they lie there."""

    folder: Path
    shape: Shape
    stored: StoredWeights
    config: Mapping[str, Any]

    @property
    def native(self) -> Path:
        return self.folder / "native.onnx"

    @property
    def exact(self) -> Path:
        return self.folder / "exact.onnx"

    @property
    def portable(self) -> Path:
        return self.folder / "portable.onnx"


def build(checkpoint: Checkpoint, precision: str, folder: Path) -> Built:
    """The three graphs of a recipe, without any check: that is what tests are for."""
    folder.mkdir(parents=True, exist_ok=True)
    with DataFile(folder / "weights.onnx_data") as data:
        store = WeightStore(checkpoint, recipe(precision), data)
        architecture = arch.find(checkpoint.config["model_type"])
        stored = architecture.store(store)
    for name, inputs, level in (
        ("native", io.native, FAST),
        ("exact", io.native, EXACT),
        ("portable", io.portable, EXACT),
    ):
        g = Graph(name, data.path.name, level)
        architecture.build(g, inputs(g), stored)
        g.save(folder / f"{name}.onnx")
    read = StoredWeights(data, store.places)
    return Built(folder, architecture.shape(stored), read, checkpoint.config)


def logits(built: Built, ids: Sequence[int]) -> Array:
    """Logits (T, V) of the float32 graph."""
    session = Session(built.exact, built.shape, LoadOptions(threads=1))
    return session.forward(ids, range(len(ids)), KVCache(built.shape, len(ids))).copy()


def make_bundle(
    source: Path,
    out: Path,
    precision: str | None = None,
    notice: Callable[[str], None] = silent,
    kv: str | None = None,
) -> Manifest:
    """The manifest of the bundle of `source` in the new folder `out`, self-check included."""
    out.mkdir(parents=True)
    chosen = recipe(precision) if precision else None
    job = Job(source, chosen, Source(reference="test:tiny"), out.name, kv=kv)
    return export_bundle(job, out, notice)
