"""Damaged and hostile GGUF files: one line, in no time, in little memory."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import Corrupt, EdgellmError, Incompatible, NotFound
from edgellm_export.checkpoint.gguf import GgufCheckpoint
from edgellm_export.checkpoint.gguf_file import GgufFile, read
from edgellm_export.weights import to_float32

U32, F32, STRING, ARRAY = 4, 6, 8, 9
Q4_0, F32_TENSOR = 2, 0
MEMORY_LIMIT_MB = 64


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def u32(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


class Entry(NamedTuple):
    """A line of the tensor table; dims are in GGUF's order, K first."""

    name: str | bytes
    dims: Sequence[int]
    kind: int
    offset: int

    def pack(self) -> bytes:
        dims = struct.pack(f"<I{len(self.dims)}Q", len(self.dims), *self.dims)
        return text(self.name) + dims + struct.pack("<IQ", self.kind, self.offset)


MATRIX = Entry("a", (32, 4), Q4_0, 0)  # 72 bytes
VECTOR = Entry("b", (16,), F32_TENSOR, 96)  # 64 bytes


def build(
    entries: Sequence[Entry] = (MATRIX, VECTOR),
    keys: Sequence[bytes] = (),
    *,
    data_bytes: int = 160,
    counts: tuple[int, int] | None = None,
    start: bytes = b"GGUF\3\0\0\0",
) -> bytes:
    tensor_count, key_count = counts or (len(entries), len(keys))
    head = start + struct.pack("<QQ", tensor_count, key_count) + b"".join(keys)
    head += b"".join(entry.pack() for entry in entries)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(data_bytes)


def opened(tmp_path: Path, content: bytes) -> GgufFile:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return read(path)


def test_the_file_that_the_others_are_made_from_is_sound(tmp_path: Path) -> None:
    keys = [u32("n", 7), key("names", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("é"))]
    file = opened(tmp_path, build(keys=keys))
    assert file.metadata == {"n": 7, "names": ["x", "é"]}
    assert [(t.name, t.shape, t.size_bytes) for t in file.tensors.values()] == [
        ("a", (4, 32), 72),
        ("b", (16,), 64),
    ]


BIG = 1 << 60
HOSTILE = {
    "too many tensors": (build(counts=(BIG, 0)), "claims 1152921504606846976 tensors"),
    "tensors that are not there": (build(counts=(100_000, 0)), "pass the end|dimensions|key|twice"),
    "too many keys": (build(counts=(2, BIG)), "claims 2 tensors"),
    "a key longer than the file": (
        build(keys=[struct.pack("<Q", BIG)]),
        "pass the end of the file",
    ),
    "a text longer than the file": (
        build(keys=[key("k", STRING, struct.pack("<Q", 2**64 - 1))]),
        "pass the end of the file",
    ),
    "an endless array of numbers": (
        build(keys=[key("k", ARRAY, struct.pack("<IQ", 0, BIG))]),
        "more than a header may hold",
    ),
    "an array of numbers past the end": (
        build(keys=[key("k", ARRAY, struct.pack("<IQ", 0, 1 << 20))]),
        "pass the end of the file",
    ),
    "an endless array of texts": (
        build(keys=[key("k", ARRAY, struct.pack("<IQ", STRING, 1 << 22))]),
        "passes the end of the header",
    ),
    "an array of arrays": (
        build(keys=[key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(12))]),
        "array inside an array",
    ),
    "an unknown metadata type": (build(keys=[key("k", 13, b"")]), "unknown metadata type 13"),
    "a key twice": (build(keys=[u32("k", 1), u32("k", 2)]), "key 'k' appears twice"),
    "a text that is not UTF-8": (build(keys=[key("k", STRING, text(b"\xff"))]), "not UTF-8"),
    "a name that is not UTF-8": (build([MATRIX._replace(name=b"\xc3")]), "not UTF-8"),
    "a tensor twice": (build([MATRIX, VECTOR._replace(name="a")]), "tensor 'a' appears twice"),
    "an offset beyond the file": (build([MATRIX._replace(offset=1 << 40)]), "the file has"),
    "an offset that wraps around": (build([MATRIX._replace(offset=2**64 - 32)]), "the file has"),
    "an unaligned offset": (build([MATRIX._replace(offset=8)]), "unaligned"),
    "tensors that overlap": (build([MATRIX, VECTOR._replace(offset=64)]), "overlaps"),
    "a dimension larger than the file": (build([MATRIX._replace(dims=(32, BIG))]), "the file has"),
    "dimensions that multiply to 2^64": (
        build([MATRIX._replace(dims=(1 << 32, 1 << 32))]),
        "the file has",
    ),
    "a dimension of zero": (build([MATRIX._replace(dims=(32, 0))]), "does not divide"),
    "a row that is no whole block": (build([MATRIX._replace(dims=(33, 4))]), "blocks of 32"),
    "no dimensions": (build([MATRIX._replace(dims=())]), "0 dimensions"),
    "five dimensions": (build([MATRIX._replace(dims=(32, 1, 1, 1, 1))]), "5 dimensions"),
    "alignment zero": (build(keys=[u32("general.alignment", 0)]), "alignment is 0"),
    "alignment three": (build(keys=[u32("general.alignment", 3)]), "alignment is 3"),
    "a huge alignment": (build(keys=[u32("general.alignment", 1 << 31)]), "alignment is 2147"),
    "bad magic": (b"GGML" + build()[4:], "is not GGUF"),
    "a saved error page": (b"<!DOCTYPE html><html>404 Not Found</html>", "saved web page"),
    "an empty file": (b"", "has 0 bytes"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "is not GGUF"),
    "only zeros": (bytes(4096), "is not GGUF"),
}
FOREIGN = {
    "version 1": (build(start=b"GGUF\1\0\0\0"), "GGUF version 1"),
    "version 9": (build(start=b"GGUF\x09\0\0\0"), "GGUF version 9"),
    "big-endian": (build(start=b"GGUF\0\0\0\3"), "big-endian"),
    "an unknown tensor type": (build([MATRIX._replace(kind=999)]), "unknown type 999"),
    "a removed tensor type": (build([MATRIX._replace(kind=4)]), "unknown type 4"),
    "no tensors": (build([]), "no tensors"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_is_corrupt_and_the_message_says_why(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    with pytest.raises(Corrupt, match=words) as caught:
        opened(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_sound_file_of_another_kind_is_incompatible(tmp_path: Path, name: str) -> None:
    content, words = FOREIGN[name]
    with pytest.raises(Incompatible, match=words):
        opened(tmp_path, content)


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read(tmp_path / "nowhere.gguf")
    with pytest.raises(Corrupt, match="is not a file"):
        read(tmp_path)


# A whole llama of one layer, width 2: small enough to be cut at every byte and flipped at random.
_LAYER = {
    "attn_norm": (2,), "attn_q": (2, 2), "attn_k": (2, 2), "attn_v": (2, 2), "attn_output": (2, 2),
    "ffn_norm": (2,), "ffn_gate": (2, 2), "ffn_up": (2, 2), "ffn_down": (2, 2),
}  # fmt: skip
_NAMES = {"token_embd.weight": (2, 4), "output_norm.weight": (2,)}
_NAMES |= {f"blk.0.{name}.weight": dims for name, dims in _LAYER.items()}
_KEYS = [
    key("general.architecture", STRING, text("llama")),
    u32("llama.embedding_length", 2),
    u32("llama.block_count", 1),
    u32("llama.context_length", 8),
    u32("llama.feed_forward_length", 2),
    u32("llama.attention.head_count", 1),
    key("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
    key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")),
]


def small(kind: int = F32_TENSOR) -> bytes:
    entries = [Entry(name, dims, kind, 32 * i) for i, (name, dims) in enumerate(_NAMES.items())]
    return build(entries, _KEYS, data_bytes=32 * len(_NAMES))


SMALL = small()


def used(path: Path) -> None:
    """Everything an exporter reads."""
    checkpoint = GgufCheckpoint(path)
    for name in checkpoint.names():
        to_float32(checkpoint.weight(name))


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(SMALL)
    used(path)
    for length in range(len(SMALL) - 24):  # the last tensor has 16 bytes and 16 of padding
        path.write_bytes(SMALL[:length])
        with pytest.raises(Corrupt):
            GgufCheckpoint(path)


@pytest.mark.parametrize("kind", [24, 25, 26], ids=["I8", "I16", "I32"])
def test_integers_without_a_scale_are_no_weights(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small(kind))
    with pytest.raises(Incompatible, match="holds no weights"):
        used(path)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_changed_bytes_never_hurt(changes: list[tuple[int, int]]) -> None:
    content = bytearray(SMALL)
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(content)
        tracemalloc.start()
        try:
            used(path)
            said = "read"
        except EdgellmError as error:
            said = str(error)
        finally:
            peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
    assert peak_mb < MEMORY_LIMIT_MB
    assert "\n" not in said
