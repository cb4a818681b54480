"""A GGUF file of float32 tensors from a Llama-shaped Hugging Face folder, for llama.cpp's tools.

    python tests/benchmarks/gguf_float.py hf-folder model.gguf

llama.cpp's own converter knows tokenizers by a list of hashes, which a new model is not on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - puts this checkout's packages on the path
import gguf
import numpy as np
from numpy.typing import NDArray

from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.weights import to_float32

LAYER = {
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


def write(folder: Path, out: Path) -> None:
    """`out`, whole or not at all; KeyError for a tensor that is no Llama's."""
    checkpoint = open_checkpoint(folder)
    part = out.with_name(f"part-{out.name}")
    writer = gguf.GGUFWriter(part, "llama")
    describe(writer, checkpoint.config)
    words(writer, folder, checkpoint.config)
    for name, values in tensors(checkpoint):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(out)


def describe(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def words(writer: gguf.GGUFWriter, folder: Path, config: Any) -> None:
    """The byte-level BPE; digits one by one is what llama.cpp calls "smollm"."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = {**tokenizer["model"]["vocab"]}
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    merges = tokenizer["model"]["merges"]
    single_digits = "Digits" in json.dumps(tokenizer["pre_tokenizer"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if single_digits else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """All tensors by llama.cpp's names; query and key rows as its rotation wants them."""
    config = checkpoint.config
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    outer = {"embed_tokens": "token_embd", "norm": "output_norm"}
    for name in sorted(checkpoint.names()):
        values = to_float32(checkpoint.weight(name))
        parts = name.removesuffix(".weight").removeprefix("model.").split(".")
        if parts == ["lm_head"]:
            yield "output.weight", values
        elif parts[0] != "layers":
            yield f"{outer['.'.join(parts)]}.weight", values
        else:
            kind = LAYER[".".join(parts[2:])]
            if kind in heads:
                values = rotated(values, heads[kind])
            yield f"blk.{parts[1]}.{kind}.weight", values


def rotated(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head with the two halves interleaved (LlamaModel.permute in llama.cpp)."""
    rows, inner = weight.shape
    split = weight.reshape(heads, 2, rows // heads // 2, inner)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows, inner))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/benchmarks/gguf_float.py FOLDER MODEL.gguf")
    write(Path(sys.argv[1]), Path(sys.argv[2]))
