"""A checkpoint without the tokens that a corpus or a script never uses.

    corpus, scripts ── wanted ──▶ closed under merges ──▶ ids in the old order
    embedding, lm_head: rows of these ids, blocks bit for bit · tokenizer.json and every id: renamed

Logits of kept tokens are what they were for every text whose tokens are all kept.
Source of the idea: Ushio et al., arXiv:2305.15020 (vocabulary trimming).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgellm.bundle import tokenizer
from edgellm_export.checkpoint import Checkpoint, TextFiles
from edgellm_export.shrink import bpe
from edgellm_export.shrink.scripts import written_in
from edgellm_export.shrink.wrapped import Wrapped
from edgellm_export.weights import Blocks, Dense, Weight

TABLES = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")
# Settings of a config or generation_config that hold token ids, alone or in lists.
_ID_KEYS = re.compile(r"\w*_token_ids?|suppress_tokens|begin_suppress_tokens|bad_words_ids")
# Long texts are encoded in pieces of that many characters.
_PIECE = 1 << 16
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|[%}]}([^{]*)")


class TrimmedCheckpoint(Wrapped):
    """See `Checkpoint`. Token i is what token kept[i] of the base was."""

    def __init__(self, base: Checkpoint, kept: Sequence[int]) -> None:
        super().__init__(base)
        self._kept = np.array(kept, np.int64)
        self._new_ids = {old: new for new, old in enumerate(kept)}
        self.config = {**_renamed(base.config, self._new_ids), "vocab_size": len(kept)}
        rows = base.config["vocab_size"]
        share = f"{100 * len(kept) / rows:.0f} %"
        self.notices.append(f"{len(kept)} of {rows} tokens are kept ({share})")

    def weight(self, name: str) -> Weight:
        """One tensor; of the tables by token only the kept rows."""
        weight = self.base.weight(name)
        if name not in TABLES:
            return weight
        if isinstance(weight, Blocks):
            return weight.rows(self._kept)
        shape = (len(self._kept), *weight.shape[1:])
        return Dense(shape, weight.dtype, lambda: weight.numpy()[self._kept])

    def text_files(self) -> TextFiles:
        text = self.base.text_files()
        content = bpe.trimmed(json.loads(text.tokenizer_json), self._new_ids)
        config = dict(text.tokenizer_config)
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(self._new_ids[int(i)]): token
                for i, token in config["added_tokens_decoder"].items()
                if int(i) in self._new_ids
            }
        return dataclasses.replace(
            text,
            tokenizer_json=json.dumps(content, ensure_ascii=False),
            tokenizer_config=config,
            generation_config=_renamed(text.generation_config, self._new_ids),
        )


def choose(checkpoint: Checkpoint, corpus: str | None, scripts: Sequence[str]) -> list[int]:
    """The ids to keep, ascending: what the corpus or the scripts need, and what nobody can spare.

    Incompatible for a tokenizer that is not BPE, UsageError for an unknown script.
    """
    text, rows = checkpoint.text_files(), checkpoint.config["vocab_size"]
    content = json.loads(text.tokenizer_json)
    vocabulary = bpe.Vocabulary(content)
    words = tokenizer.parse(text.tokenizer_json.encode())
    wanted = vocabulary.always() | bpe.post_processor_ids(content.get("post_processor"))
    for settings in (checkpoint.config, text.generation_config):
        wanted.update(i for key, value in settings.items() for i in _ids(key, value))
    wanted.update(_used(words, template_words(text.chat_template or "")))
    if corpus is not None:
        wanted.update(_used(words, [corpus]))
    if scripts:
        wanted.update(_written(words, vocabulary, scripts))
    return sorted(i for i in vocabulary.closed(wanted) if i < rows)


def template_words(template: str) -> Iterator[str]:
    """What a chat template may write by itself: its quoted strings and the text between tags."""
    for single, double, between in _LITERAL.findall(template):
        yield (single or double).replace("\\n", "\n") or between


def _used(words: tokenizer.Tokenizer, texts: Iterable[str]) -> set[int]:
    return {
        token
        for text in texts
        for start in range(0, len(text), _PIECE)
        for token in words.encode(text[start : start + _PIECE], special=False)
    }


def _written(
    words: tokenizer.Tokenizer, vocabulary: bpe.Vocabulary, scripts: Sequence[str]
) -> Iterator[int]:
    """Tokens that are whole characters of these scripts, and can be made."""
    fits = written_in(scripts)
    for token, token_id in vocabulary.ids.items():
        try:
            text = words.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            continue
        if fits(text) and vocabulary.reachable(token):
            yield token_id


def _ids(key: str, value: Any) -> Iterator[int]:
    """The token ids in a setting, however deep."""
    if _ID_KEYS.fullmatch(key) and type(value) is int:
        yield value
    elif _ID_KEYS.fullmatch(key) and isinstance(value, list):
        for one in value:
            yield from _ids(key, one)


def _renamed(settings: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """The same settings with every token id by its new name."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(one) for one in value]
        return new_ids.get(value, value) if type(value) is int else value

    return {
        key: moved(value) if _ID_KEYS.fullmatch(key) else value for key, value in settings.items()
    }
