"""What a chat remembers, and the JSON file that `/save` and `/load` exchange."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgellm.errors import Corrupt, Incompatible, NotFound, StorageFailed, UsageError
from edgellm.stream import Message, Request, Sampling

FORMAT = 1
FORMAT_KEY = "edgellm_chat"
# Far more than any context holds; a larger file is not a conversation.
FILE_LIMIT_BYTES = 16 << 20
# About 250,000 tokens: more than the contexts of the models this is meant for.
READ_LIMIT_BYTES = 1 << 20
WHOLE_NUMBERS = ("top_k", "penalty_window", "seed")


@dataclass(frozen=True, slots=True)
class Conversation:
    """The state of a chat. `messages` alternate: user, assistant, user, assistant.

    `attached` is text that `/read` put before the next question.
    """

    sampling: Sampling
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    system: str | None = None
    messages: tuple[Message, ...] = ()
    attached: str = ""

    def request(self, messages: Sequence[Message]) -> Request:
        """The request that asks for the answer to the last of `messages`."""
        head = (Message("system", self.system),) if self.system else ()
        return Request(
            messages=(*head, *messages),
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            stop=self.stop,
        )


def save(path: Path, conversation: Conversation, model: str) -> None:
    """Writes the file whole or not at all. A file that is no saved chat is never overwritten."""
    if path.exists():
        try:
            _document(path)
        except (Corrupt, NotFound) as error:
            message = f"{path} exists and is no saved chat; choose another name"
            raise StorageFailed(message) from error
    document = {FORMAT_KEY: FORMAT, "model": model} | asdict(conversation)
    del document["attached"]
    try:
        _replace(path, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        message = f"cannot save {path}: {error.strerror}; choose another folder"
        raise StorageFailed(message) from error


def _replace(path: Path, text: str) -> None:
    # mkstemp gives mode 0600: a conversation is private.
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[Conversation, str]:
    """The saved conversation and the name of its model; NotFound, Corrupt or Incompatible."""
    raw = _document(path)
    if raw[FORMAT_KEY] != FORMAT:
        found = raw[FORMAT_KEY]
        raise Incompatible(f"{path} has format {found!r}, this version reads {FORMAT}; save again")
    try:
        return _parse(raw), _text(raw, "model")
    except (Corrupt, UsageError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Corrupt(f"{path} is damaged: {what}; nothing was loaded") from error


def _document(path: Path) -> dict[str, Any]:
    text = read_text(path, FILE_LIMIT_BYTES)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not a saved chat: it is not JSON") from error
    if not isinstance(raw, dict) or FORMAT_KEY not in raw:
        raise Corrupt(f"{path} is not a saved chat: it has no {FORMAT_KEY}")
    return raw


def _parse(raw: Mapping[str, Any]) -> Conversation:
    messages = tuple(_message(item) for item in _list(raw, "messages"))
    roles = [message.role for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise Corrupt("messages must alternate: user, assistant")
    conversation = Conversation(
        sampling=_sampling(raw["sampling"]),
        max_tokens=_number(raw, "max_tokens", whole=True),
        stop=tuple(_checked(item, "stop") for item in _list(raw, "stop")),
        system=None if raw["system"] is None else _text(raw, "system"),
        messages=messages,
    )
    conversation.request([Message("user", "check")])
    return conversation


def _message(raw: Any) -> Message:
    if not isinstance(raw, dict) or set(raw) != {"role", "content"}:
        raise Corrupt("a message needs role and content, and nothing else")
    return Message(raw["role"], _text(raw, "content"))


def _sampling(raw: Any) -> Sampling:
    known = [field.name for field in fields(Sampling)]
    if not isinstance(raw, dict) or not set(raw) <= set(known):
        raise Corrupt(f"sampling may hold {', '.join(known)}")
    said = {name: value for name, value in raw.items() if value is not None}
    return Sampling(**{name: _number(said, name, name in WHOLE_NUMBERS) for name in said})


def _number(raw: Mapping[str, Any], name: str, whole: bool) -> Any:
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise Corrupt(f"{name} must be a {'whole ' if whole else ''}number, got {value!r:.40}")
    return value


def _list(raw: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(raw[name], list):
        raise Corrupt(f"{name} must be a list")
    return list(raw[name])


def _text(raw: Mapping[str, Any], name: str) -> str:
    return _checked(raw[name], name)


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Corrupt(f"{name} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can write half of a surrogate pair, which no tokenizer takes.
        raise Corrupt(f"{name} holds half a character at {error.start}") from error
    return value


def read_text(path: Path, limit_bytes: int) -> str:
    """The text of a regular file; NotFound, or Corrupt when it is too large or not UTF-8 text."""
    # Not `exists`: reading a device or a pipe might never end.
    if not path.is_file():
        raise NotFound(f"{path} is not a file; check the name")
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if len(data) > limit_bytes:
        raise Corrupt(f"{path} has more than {limit_bytes} bytes; take a shorter part of it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Corrupt(
            f"{path} is not UTF-8 text at byte {error.start}; convert it first"
        ) from error
    if "\0" in text:
        raise Corrupt(f"{path} is not text: it holds a zero byte at {text.index(chr(0))}")
    return text
