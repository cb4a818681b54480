"""Text to token ids and back, over the Hugging Face `tokenizers` library.

    Tokenizer ── encode ──▶ ids ── stream().push ──▶ text, whole characters only
                 decode is a fold over the same stream

Every token stands for bytes: a byte-level BPE maps one character of the token to one byte, a
SentencePiece vocabulary has pieces plus byte tokens such as <0xE2>. Bytes are joined and read as
UTF-8, so a character may be spread over many tokens. Special tokens stand for no bytes.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import Corrupt, Incompatible, NotFound, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

FILE_NAME = "tokenizer.json"
# The largest published ones (Gemma 3, 262,144 tokens) have 33 MB.
FILE_LIMIT_BYTES = 128 << 20


class Tokenizer:
    """A bundle's vocabulary. Threads may share one."""

    def __init__(self, inner: HuggingFaceTokenizer, decoder: Any) -> None:
        # Settings of training time would cut or pad a prompt.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._decoder = decoder
        self._lock = threading.Lock()
        self._bytes: dict[int, bytes] = {}
        added = inner.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = True, wrap: bool = False) -> list[int]:
        """The token ids of `text`.

        special: strings such as <|im_end|> in the text become their special token. Right for a
        rendered chat template, wrong for text of unknown origin.
        wrap: the tokens a model expects around a plain prompt (BOS, or CLS and SEP) are added.
        UsageError when `text` holds half of a surrogate pair, which is not Unicode text; Corrupt
        when the vocabulary itself cannot express it.
        """
        _check_unicode(text)
        inner = self._inner
        # The switch belongs to the library's object; a second object would double the memory.
        with self._lock, _library("cannot encode this text"):
            inner.encode_special_tokens = not special
            return inner.encode(text, add_special_tokens=wrap).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, continuing: bool = False) -> TextStream:
        """A fresh incremental decoder.

        continuing: the ids follow other text, so a leading space that the vocabulary marks on
        every first word (SentencePiece) is kept.
        """
        pieces = self._pieces
        return TextStream(self.token_bytes, pieces.drop, 0 if continuing else pieces.lead)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to the text: none for special tokens and unknown ids."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._compute_bytes(token_id)
        return known

    def spell(self, token_id: int) -> str:
        """One token for a person to read: its text, or the name of a special token."""
        raw = self.token_bytes(token_id)
        if raw:
            return raw.decode(errors="replace")
        return self._inner.id_to_token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, as the vocabulary spells it; None if it has none."""
        return self._inner.token_to_id(token)

    def _compute_bytes(self, token_id: int) -> bytes:
        if token_id in self.special_ids or not 0 <= token_id < 1 << 32:
            return b""
        token = self._inner.id_to_token(token_id)
        return b"" if token is None else self._pieces.to_bytes(token)

    @cached_property
    def _pieces(self) -> _Pieces:
        return _Pieces(self._decoder)


class TextStream:
    """Turns ids into text one at a time. The pieces joined are `Tokenizer.decode` of all ids."""

    def __init__(self, token_bytes: Callable[[int], bytes], drop: str, lead: int) -> None:
        self._token_bytes = token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._drop = drop
        self._lead = lead

    def push(self, token_id: int) -> str:
        """The characters this token completes, often none. U+FFFD for bytes that are not UTF-8."""
        text = self._decode(self._token_bytes(token_id))
        return self._trim(text) if self._lead and text else text

    def finish(self) -> str:
        """What is left: U+FFFD when the ids ended inside a character, else nothing."""
        return self._decode(b"", True)

    def _trim(self, text: str) -> str:
        if self._lead < 0:
            self._lead = 0
            return text.replace(self._drop, "")
        spaces = min(len(text) - len(text.lstrip(self._drop)), self._lead)
        self._lead = self._lead - spaces if spaces == len(text) else 0
        return text[spaces:]


class _Pieces:
    """How a vocabulary spells bytes, read from the `decoder` of a tokenizer.json.

    Follows decoders/{byte_level,byte_fallback,metaspace,strip}.rs of huggingface/tokenizers, with
    one difference: a run of byte tokens that is not UTF-8 keeps its valid characters here, while
    the library replaces the whole run. Only so can a character be shown when it is complete.
    """

    def __init__(self, decoder: Any) -> None:
        # Up to `lead` characters `drop` are cut from the text; -1: all those of its first token.
        self.drop, self.lead = " ", 0
        self._byte_level = False
        self._byte_fallback = False
        self._fused = False
        self._replace: list[tuple[str, str]] = []
        steps = decoder.get("decoders") if _kind(decoder) == "Sequence" else [decoder]
        for step in steps if isinstance(steps, list) else [steps]:
            self._read(step)

    def _read(self, step: Any) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Fuse"}:
                self._fused = True
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._replace.append((old, new))
            case {"type": "Metaspace", "replacement": str(mark)}:
                self._replace.append((mark, " "))
                if step.get("prepend_scheme", "always") != "never":
                    self.lead = -1
            case {"type": "Strip", "content": str(drop), "start": int(lead), "stop": 0} if (
                self._fused
            ):
                self.drop, self.lead = drop, lead
            case _:
                raise Incompatible(
                    f"the tokenizer's decoder {_kind(step)!r} cannot be streamed; "
                    "this model turns text into ids only"
                )

    def to_bytes(self, token: str) -> bytes:
        if self._byte_level:
            try:
                return bytes([_BYTE_OF_CHARACTER[character] for character in token])
            except KeyError:
                return token.encode()
        if self._byte_fallback and len(token) == 6 and token[:3] == "<0x" and token[5] == ">":
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                return token.encode()
        for old, new in self._replace:
            token = token.replace(old, new)
        return token.encode()


def _kind(decoder: Any) -> str:
    return str(decoder.get("type")) if isinstance(decoder, Mapping) else type(decoder).__name__


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary.

    Source: `bytes_to_unicode` of OpenAI's GPT-2 (github.com/openai/gpt-2, src/encoder.py).
    """
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in shown else next(spare)) for byte in range(256)]


_BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(byte_alphabet())}


def read(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle folder; NotFound without the file, Corrupt when it is damaged."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise NotFound(f"{folder} has no {FILE_NAME}; export the model again")
    if path.stat().st_size > FILE_LIMIT_BYTES:
        raise Corrupt(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; export the model again")
    try:
        return parse(path.read_bytes())
    except Corrupt as error:
        raise type(error)(f"{path}: {error}") from error


def parse(raw: bytes) -> Tokenizer:
    """The tokenizer in `raw`, the contents of a tokenizer.json; Corrupt if it is not one."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    with _library("is not one that can be used"):
        _check_prefix(raw)
        inner = HuggingFaceTokenizer.from_buffer(raw)
    # Its pickled state is its JSON; reading the whole file again would cost 20 ms.
    return Tokenizer(inner, json.loads(inner.decoder.__getstate__()) if inner.decoder else None)


# A prefix that is not empty, or ASCII text spelled by its codes, which might hide one.
_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]|\\u00[2-7]')


def _check_prefix(raw: bytes) -> None:
    # tokenizers 0.23 aborts the whole process over BPE merges shorter than such a prefix. Reading
    # a large file twice takes long, and WordPiece has prefixes too, hence the search first.
    if _PREFIX.search(raw) is None:
        return
    content = json.loads(raw)
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict) and "merges" in model and model.get("continuing_subword_prefix"):
        raise ValueError("BPE with a continuing_subword_prefix")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text is not valid Unicode at character {error.start} "
            f"({text[error.start]!a}); remove that character"
        ) from error


@contextmanager
def _library(what: str) -> Iterator[None]:
    """Turns whatever the library raises over a wrong file into Corrupt."""
    try:
        yield
    except BaseException as error:
        # Plain Exception from its checks, and PanicException, a BaseException that cannot be
        # imported, where its Rust code gives up.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            why = " ".join(str(error).split())[:200]
            raise Corrupt(f"the tokenizer {what}: {why}; export the model again") from error
        raise
