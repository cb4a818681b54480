"""The file a chat is saved in: whole or absent, checked before it is believed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from edgellm.cli.conversation import FORMAT_KEY, Conversation, load, read_text, save
from edgellm.errors import Corrupt, EdgellmError, Incompatible, NotFound, StorageFailed
from edgellm.stream import Message, Sampling

TALK = Conversation(
    sampling=Sampling(temperature=0.5, top_k=3, seed=9),
    max_tokens=77,
    stop=("END",),
    system="Be brief.",
    messages=(Message("user", "日本 🙂\n?"), Message("assistant", "Yes.")),
)


def test_a_saved_conversation_comes_back_equal_and_private(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(path, TALK, "m")
    assert load(path) == (TALK, "m")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_saving_again_replaces_a_chat_but_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(path, TALK, "m")
    save(path, TALK, "n")
    assert load(path)[1] == "n"
    path.write_text("precious")
    with pytest.raises(StorageFailed, match="exists and is no saved chat"):
        save(path, TALK, "m")
    assert path.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"cannot save .*No such file or directory"):
        save(tmp_path / "absent" / "talk.json", TALK, "m")


def broken(path: Path, change: dict[str, Any]) -> Path:
    save(path, TALK, "m")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return path


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({FORMAT_KEY: 2}, Incompatible, "has format 2, this version reads 1"),
        ({"messages": "hello"}, Corrupt, "messages must be a list"),
        ({"messages": [{"role": "user", "content": "x"}]}, Corrupt, "must alternate"),
        ({"messages": [{"role": "user"}]}, Corrupt, "needs role and content"),
        ({"messages": [{"role": [], "content": "x"}]}, Corrupt, "unknown role"),
        ({"system": 3}, Corrupt, "system must be text, got int"),
        ({"system": "\ud800"}, Corrupt, "half a character at 0"),
        ({"sampling": {"temperature": "hot"}}, Corrupt, "temperature must be a number"),
        ({"sampling": {"top_k": 1.5}}, Corrupt, "top_k must be a whole number"),
        ({"sampling": {"top_p": 7}}, Corrupt, r"top_p must be in \(0, 1\]"),
        ({"sampling": {"heat": 1}}, Corrupt, "sampling may hold temperature"),
        ({"max_tokens": 0}, Corrupt, "max_tokens must be 1 or more"),
        ({"max_tokens": True}, Corrupt, "max_tokens must be a whole number"),
        ({"stop": [""]}, Corrupt, "none of them empty"),
        ({"model": None}, Corrupt, "model must be text"),
    ],
)
def test_a_file_that_lies_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], kind: type[EdgellmError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        load(broken(tmp_path / "talk.json", change))


@pytest.mark.parametrize("missing", ["messages", "sampling", "max_tokens", "stop", "system"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "talk.json"
    save(path, TALK, "m")
    raw = json.loads(path.read_text())
    del raw[missing]
    path.write_text(json.dumps(raw))
    with pytest.raises(Corrupt, match=f"'{missing}' is missing"):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": 1}'])
def test_what_is_no_saved_chat_is_corrupt(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(Corrupt, match="is not a saved chat"):
        load(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 11, "has more than 10 bytes"),
        (b"ab\xff", "not UTF-8 text at byte 2"),
        (b"a\0b", "zero byte at 1"),
    ],
)
def test_what_is_no_text_is_not_read(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=message):
        read_text(path, 10)


def test_devices_and_folders_are_not_files(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "absent", Path("\0")):
        with pytest.raises(NotFound, match="is not a file"):
            read_text(path, 10)
