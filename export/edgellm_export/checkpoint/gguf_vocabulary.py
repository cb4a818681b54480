"""The vocabulary inside GGUF metadata, checked before anything is built from it.

Key names: docs/gguf.md of ggml. Token types: enum llama_token_type in llama.cpp's include/llama.h.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from edgellm.errors import Corrupt

_PREFIX = "tokenizer.ggml."
# Sixteen times the largest published vocabulary; a count beyond it is a lie.
_TOKENS_LIMIT = 1 << 22


class TokenType(IntEnum):
    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in the order of their ids. `special` holds the ids of bos, eos, unk, pad, eot, eom."""

    kind: str
    pre: str | None
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]
    special: Mapping[str, int]
    add_bos: bool | None
    add_eos: bool
    add_space_prefix: bool | None

    def token(self, role: str) -> str | None:
        """The token with this role, such as "bos"; None if the file names none."""
        return self.tokens[self.special[role]] if role in self.special else None

    def is_control(self, token: str) -> bool:
        return token in self.ids and self.types[self.ids[token]] == TokenType.CONTROL


def read(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF file; Corrupt names the key that is missing or wrong."""
    kind = text(metadata, _PREFIX + "model")
    if kind is None:
        raise Corrupt("the GGUF holds no vocabulary (tokenizer.ggml.model); get one that does")
    tokens = _tokens(metadata)
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise Corrupt(f"tokenizer.ggml.tokens holds {twice!r:.80} twice; get the file again")
    return Vocabulary(
        kind=kind,
        pre=text(metadata, _PREFIX + "pre"),
        tokens=tokens,
        types=_types(metadata, len(tokens)),
        ids=ids,
        special=_special(metadata, len(tokens)),
        add_bos=_flag(metadata, "add_bos_token"),
        add_eos=bool(_flag(metadata, "add_eos_token")),
        add_space_prefix=_flag(metadata, "add_space_prefix"),
    )


def merges(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The BPE merges in order of rank; Corrupt when one names a token that is not there."""
    ids = vocabulary.ids
    pairs = []
    for i, line in enumerate(_strings(metadata, "merges")):
        # A token is never empty, so the separator is not the first character.
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise Corrupt(
                f"merge {i} ({line!r:.80}) names tokens the vocabulary lacks; get the file again"
            )
        pairs.append((left, right))
    return pairs


def scores(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[float]:
    """One finite score a token."""
    values = _array(metadata, "scores")
    if len(values) != len(vocabulary.tokens):
        raise _miscounted("scores", len(values), len(vocabulary.tokens))
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise Corrupt(f"tokenizer.ggml.scores holds what is not a number: {error}") from error
    if not all(map(math.isfinite, found)):
        raise Corrupt("tokenizer.ggml.scores holds infinite or undefined numbers")
    return found


def text(metadata: Mapping[str, Any], key: str) -> str | None:
    """A string of the metadata, None when the key is missing."""
    value = metadata.get(key)
    return None if value is None else _decoded(value, key)


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    found = _strings(metadata, "tokens")
    if not 0 < len(found) <= _TOKENS_LIMIT:
        raise Corrupt(f"tokenizer.ggml.tokens has {len(found)} entries; get the file again")
    # The name that llama.cpp gives to an empty token.
    return [token or f"[EMPTY_{i}]" for i, token in enumerate(found)]


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    if _PREFIX + "token_type" not in metadata:
        return [TokenType.NORMAL] * count
    types = [_whole(value, "token_type") for value in _array(metadata, "token_type")]
    if len(types) != count:
        raise _miscounted("token_type", len(types), count)
    return types


def _special(metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot"}
    special = {}
    for role, name in {**keys, "eom": "eom"}.items():
        value = metadata.get(f"{_PREFIX}{name}_token_id")
        if value is None:
            continue
        token_id = _whole(value, f"{name}_token_id")
        if not 0 <= token_id < count:
            raise Corrupt(
                f"tokenizer.ggml.{name}_token_id is {token_id}, but there are {count} tokens"
            )
        special[role] = token_id
    return special


def _flag(metadata: Mapping[str, Any], key: str) -> bool | None:
    value = metadata.get(_PREFIX + key)
    if value is None or value is True or value is False:
        return value
    raise Corrupt(f"tokenizer.ggml.{key} must be true or false, got {value!r:.80}")


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    return [_decoded(value, _PREFIX + key) for value in _array(metadata, key)]


def _array(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = metadata.get(_PREFIX + key)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        found = "nothing" if value is None else type(value).__name__
        raise Corrupt(f"tokenizer.ggml.{key} must be an array, found {found}; get the file again")
    return value


def _decoded(value: Any, key: str) -> str:
    try:
        if isinstance(value, (bytes, bytearray)):
            return value.decode()
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeError as error:
        raise Corrupt(f"{key} holds text that is not UTF-8: {error}") from error
    raise Corrupt(f"{key} must be text, got {type(value).__name__}")


def _whole(value: Any, key: str) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise Corrupt(f"tokenizer.ggml.{key} must hold whole numbers, got {value!r:.80}") from error


def _miscounted(key: str, found: int, count: int) -> Corrupt:
    return Corrupt(f"tokenizer.ggml.{key} has {found} entries for {count} tokens")
