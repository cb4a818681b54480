"""A Hugging Face folder in the shape of Llama 3.2 1B, with seeded random weights in bfloat16.

    python tests/benchmarks/big_checkpoint.py big-folder

What an export costs does not depend on the values. 1.24 billion parameters take 2.5 GB in two
files. The tokenizer knows the 256 bytes; all other tokens of the vocabulary have no merges.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, WIDTH = 2048, 8192, 16, 32, 8, 64
VOCABULARY = 128_256
SHARDS = 2
SEED = 0
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 256,
    "eos_token_id": 257,
}
# Rows made at once.
ROWS = 4096


def write(folder: Path) -> Path:
    """`folder`, complete; what is there already stays when its config is the same."""
    index = folder / "model.safetensors.index.json"
    if index.is_file() and json.loads((folder / "config.json").read_text()) == CONFIG:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "config.json", CONFIG)
    _json(folder / "tokenizer_config.json", {})
    (folder / "tokenizer.json").write_text(_tokenizer().to_str(), encoding="utf-8")
    shapes, weight_map = _shapes(), {}
    names = list(shapes)
    for shard in range(SHARDS):
        mine = names[shard::SHARDS]
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        _write_shard(folder / file, mine, shapes)
        weight_map |= dict.fromkeys(mine, file)
    _json(index, {"weight_map": weight_map})
    return folder


def weight_bytes() -> int:
    """Of all tensors in bfloat16."""
    return sum(2 * int(np.prod(shape)) for shape in _shapes().values())


def _shapes() -> dict[str, tuple[int, ...]]:
    query, key = HEADS * WIDTH, KV_HEADS * WIDTH
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        found |= {
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.self_attn.q_proj.weight": (query, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (key, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (key, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, query),
            f"{at}.post_attention_layernorm.weight": (HIDDEN,),
            f"{at}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{at}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return found | {"model.norm.weight": (HIDDEN,)}


def _write_shard(path: Path, names: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Length of the header, header, tensors one after another (huggingface/safetensors README)."""
    header, end = {}, 0
    for name in names:
        begin, end = end, end + 2 * int(np.prod(shapes[name]))
        header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            for values in _values(name, shapes[name]):
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    part.replace(path)


def _values(name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """A tensor in pieces: norms around 1, matrices that keep the size of what goes through."""
    rng = np.random.default_rng([SEED, *name.encode()])
    if len(shape) == 1:
        yield (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        return
    for start in range(0, shape[0], ROWS):
        size = (min(ROWS, shape[0] - start), shape[1])
        yield rng.standard_normal(size, np.float32) * np.float32(shape[1] ** -0.5)


def _tokenizer() -> Tokenizer:
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = bytes_ + [f"<|unused_{i}|>" for i in range(len(bytes_), VOCABULARY)]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/benchmarks/big_checkpoint.py FOLDER")
    write(Path(sys.argv[1]))
