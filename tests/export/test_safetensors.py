"""safetensors folders as checkpoints: exact numbers, and one line for every lie."""

from __future__ import annotations

import json
import re
import struct
import tempfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.errors import Corrupt, EdgellmError, Incompatible, NotFound
from edgellm_export.checkpoint.safetensors import SafetensorsCheckpoint
from edgellm_export.checkpoint.safetensors_file import HEADER_LIMIT_BYTES, read
from edgellm_export.weights import Dense

MEMORY_LIMIT_MB = 64
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 10,
}
VALUES = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


def encode(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A sound file: name → (dtype, shape, bytes)."""
    entries, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    return framed({"__metadata__": {"format": "pt"}, **entries}, data)


def framed(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def f32(values: NDArray[np.float32] = VALUES) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", values.shape, values.tobytes()


def folder_with(tmp_path: Path, files: Mapping[str, Any]) -> Path:
    for name, content in {"config.json": CONFIG, **files}.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(raw)
    return tmp_path


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("dtype", "raw", "expected", "name"),
    [
        ("F32", VALUES.tobytes(), VALUES, "float32"),
        ("F16", VALUES.astype(np.float16).tobytes(), VALUES.astype(np.float16), "float16"),
        (
            "BF16",
            bfloat16(VALUES).tobytes(),
            (VALUES.view(np.uint32) & 0xFFFF0000).view(np.float32),
            "bfloat16",
        ),
    ],
)
def test_float_types_are_exact(
    tmp_path: Path, dtype: str, raw: bytes, expected: NDArray[Any], name: str
) -> None:
    # A name of odd length makes the buffer unaligned, which the format allows.
    content = encode({"a": (dtype, (4, 6), raw), "oddly": f32()})
    checkpoint = SafetensorsCheckpoint(folder_with(tmp_path, {"model.safetensors": content}))
    found = checkpoint.weight("a")
    assert isinstance(found, Dense)
    assert (found.shape, found.dtype) == ((4, 6), name)
    assert found.numpy().dtype == np.float32
    assert np.array_equal(found.numpy(), expected.astype(np.float32))
    assert checkpoint.names() == {"a", "oddly"}


def test_shards_are_one_model(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    files = {
        "model.safetensors.index.json": index,
        "m-1.safetensors": encode({"a": f32()}),
        "m-2.safetensors": encode({"b": f32(VALUES * 2)}),
    }
    checkpoint = SafetensorsCheckpoint(folder_with(tmp_path, files))
    found = checkpoint.weight("b")
    assert isinstance(found, Dense)
    assert np.array_equal(found.numpy(), VALUES * 2)
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(Corrupt, match=r"lacks 1 of 2 weight files, first 'm-2.safetensors'"):
        SafetensorsCheckpoint(tmp_path)
    (tmp_path / "m-2.safetensors").write_bytes(encode({"c": f32()}))
    with pytest.raises(Corrupt, match="lacks tensor 'b' of the index"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "..", "a/b", "a\\b", "C:x", ""]
)
def test_shards_may_not_leave_the_folder(tmp_path: Path, shard: str) -> None:
    index = {"weight_map": {"a": shard}}
    folder = folder_with(tmp_path, {"model.safetensors.index.json": index})
    with pytest.raises(Corrupt, match="not a plain name"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    files = {"model.safetensors": encode({"a": f32()}), "tokenizer.json": {}}
    folder_with(folder, files)
    (folder / name).rename(outside / name)
    (folder / name).symlink_to(outside / name)
    with pytest.raises(Corrupt, match="link out of its folder"):
        SafetensorsCheckpoint(folder).text_files()


def test_the_links_of_huggingface_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    folder.mkdir(parents=True)
    folder_with(folder, {"model.safetensors": encode({"a": f32()}), "tokenizer.json": {}})
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert SafetensorsCheckpoint(folder).text_files().tokenizer_json == "{}"


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DATA = bytes(16)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes"),
    "shorter than its length field": (b"\2\0\0", "has 3 bytes"),
    "a header longer than the file": (struct.pack("<Q", 1000) + b'{"a":1}', "claims 1000 bytes"),
    "a header of 2^64": (struct.pack("<Q", 2**64 - 1) + b"{}", "claims 18446744073709551615"),
    "a huge header": (
        struct.pack("<Q", HEADER_LIMIT_BYTES + 1) + b"{}".ljust(HEADER_LIMIT_BYTES + 1),
        f"claims {HEADER_LIMIT_BYTES + 1} bytes",
    ),
    "a web page": (b"<!DOCTYPE html><html></html>", "claims"),
    "no JSON object": (framed([1, 2]), "begins with b'\\['"),
    "broken JSON": (framed(b'{"a": '), "not valid JSON"),
    "deep JSON": (framed(b'{"a":' + b"[" * 200_000), "not valid JSON"),
    "no UTF-8": (framed(b'{"\xff": 1}'), "not valid JSON"),
    "a name twice": (framed(b'{"a": 1, "a": 2}'), "'a' appears twice"),
    "an entry that is a number": (framed({"a": 1}), "entry of tensor 'a' is 1"),
    "an entry without a shape": (framed({"a": {"dtype": "F32"}}), "entry of tensor 'a'"),
    "negative offsets": (framed({"a": entry(offsets=[-16, 0])}, DATA), "offsets \\[-16, 0\\]"),
    "offsets backwards": (framed({"a": entry(offsets=[16, 0])}, DATA), "offsets \\[16, 0\\]"),
    "offsets that are texts": (framed({"a": entry(offsets=["0", "16"])}, DATA), "offsets"),
    "offsets beyond the file": (framed({"a": entry(offsets=[0, 16])}, DATA[:8]), "end at byte"),
    "huge offsets": (framed({"a": entry(offsets=[0, 10**400])}, DATA), "offsets"),
    "numbers of 5000 digits": (framed(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "tensors that overlap": (framed({"a": entry(), "b": entry()}, DATA), "overlaps another"),
    "a hole": (framed({"a": entry(offsets=[8, 24])}, bytes(24)), "leaves a hole"),
    "bytes at the end": (framed({"a": entry()}, bytes(20)), "the file has"),
    "a wrong byte size": (framed({"a": entry(shape=[5])}, DATA), "has 16 bytes"),
    "a shape that multiplies to zero": (framed({"a": entry(shape=[0])}, DATA), "has 16 bytes"),
    "a negative shape": (framed({"a": entry(shape=[-4])}, DATA), "has the shape"),
    "a shape of truth values": (framed({"a": entry(shape=[True, 4])}, DATA), "has the shape"),
    "a thousand dimensions": (framed({"a": entry(shape=[1] * 1000)}, DATA), "has the shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_lying_header_is_corrupt_and_the_message_says_why(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("dtype", ["F4", "Q8", 7, None, ["F32"]])
def test_an_unknown_dtype_is_named(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(framed({"a": entry(dtype)}, DATA))
    with pytest.raises(Incompatible, match=r"tensor 'a' has dtype"):
        read(path)


@pytest.mark.parametrize(("dtype", "size"), [("I8", 4), ("F8_E4M3", 4), ("I64", 32), ("F64", 32)])
def test_integers_and_eight_bit_floats_are_refused_when_asked_for(
    tmp_path: Path, dtype: str, size: int
) -> None:
    content = encode({"a": (dtype, (4,), bytes(size)), "b": f32()})
    checkpoint = SafetensorsCheckpoint(folder_with(tmp_path, {"model.safetensors": content}))
    checkpoint.weight("b")
    with pytest.raises(Incompatible, match=f"tensor 'a' has dtype {dtype}"):
        checkpoint.weight("a")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_undefined_numbers_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    content = encode({"a": f32(np.array([1, bad, 2], np.float32))})
    checkpoint = SafetensorsCheckpoint(folder_with(tmp_path, {"model.safetensors": content}))
    weight = checkpoint.weight("a")
    assert isinstance(weight, Dense)
    with pytest.raises(Corrupt, match="tensor 'a' holds infinite or undefined"):
        weight.numpy()


def test_tensors_that_contradict_the_config_are_named(tmp_path: Path) -> None:
    content = encode({"model.layers.0.self_attn.q_proj.weight": f32()})
    folder = folder_with(tmp_path, {"model.safetensors": content})
    with pytest.raises(Corrupt, match=re.escape("has shape (4, 6) and its config promises (8, 8)")):
        SafetensorsCheckpoint(folder)
    content = encode({"model.layers.1.self_attn.q_proj.weight": f32()})
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(Corrupt, match="beyond the 1 layers"):
        SafetensorsCheckpoint(folder)


def test_text_files_are_carried_over(tmp_path: Path) -> None:
    files = {
        "model.safetensors": encode({"a": f32()}),
        "tokenizer.json": {"version": "1.0"},
        "tokenizer_config.json": {"eos_token": "</s>", "chat_template": "{{ old }}"},
        "generation_config.json": {"eos_token_id": [1, 2]},
        "README.md": b"---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n",
    }
    checkpoint = SafetensorsCheckpoint(folder_with(tmp_path, files))
    texts = checkpoint.text_files()
    assert json.loads(texts.tokenizer_json) == {"version": "1.0"}
    assert texts.tokenizer_config["eos_token"] == "</s>"
    assert texts.generation_config == {"eos_token_id": [1, 2]}
    assert (texts.chat_template, checkpoint.licence) == ("{{ old }}", "apache-2.0")
    (tmp_path / "chat_template.jinja").write_text("{{ new }}")
    assert checkpoint.text_files().chat_template == "{{ new }}"


def test_named_templates_give_the_default_one(tmp_path: Path) -> None:
    templates = [
        {"name": "tool_use", "template": "t"},
        {"name": "default", "template": "d"},
        {"name": []},
    ]
    files = {
        "model.safetensors": encode({"a": f32()}),
        "tokenizer.json": {},
        "tokenizer_config.json": {"chat_template": templates},
    }
    checkpoint = SafetensorsCheckpoint(folder_with(tmp_path, files))
    assert checkpoint.text_files().chat_template == "d"


def test_without_a_tokenizer_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"model.safetensors": encode({"a": f32()})})
    with pytest.raises(Incompatible, match=r"no tokenizer.json; make one with transformers"):
        SafetensorsCheckpoint(folder).text_files()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"a":' * 100_000, b'{"a":1,"a":2}']
)
def test_a_broken_config_is_one_line(tmp_path: Path, content: bytes) -> None:
    files = {"model.safetensors": encode({"a": f32()}), "config.json": content}
    with pytest.raises(Corrupt, match=r"config.json") as caught:
        SafetensorsCheckpoint(folder_with(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_a_missing_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no config.json"):
        SafetensorsCheckpoint(tmp_path)


SMALL = encode({"model.norm.weight": f32(np.ones(8, np.float32)), "b": ("BF16", (2, 2), bytes(8))})


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for length in range(len(SMALL)):
        path.write_bytes(SMALL[:length])
        with pytest.raises(Corrupt):
            read(path)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_changed_bytes_never_hurt(changes: list[tuple[int, int]]) -> None:
    content = bytearray(SMALL)
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as name:
        folder = folder_with(Path(name), {"model.safetensors": bytes(content)})
        tracemalloc.start()
        try:
            checkpoint = SafetensorsCheckpoint(folder)
            for tensor in checkpoint.names():
                weight = checkpoint.weight(tensor)
                assert isinstance(weight, Dense)
                weight.numpy()
            said = "read"
        except EdgellmError as error:
            said = str(error)
        finally:
            peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
    assert peak_mb < MEMORY_LIMIT_MB
    assert "\n" not in said
