"""Making a model smaller in other ways than by bits, before its weights are stored.

    Checkpoint ── layers dropped ── MLPs narrowed ── vocabulary trimmed ──▶ Checkpoint

Each step is a Checkpoint around another, so that every architecture and every recipe takes it.
bpe and scripts choose and rename tokens, vocabulary cuts the rows that belong to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import NotFound, UsageError
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.shrink import vocabulary


@dataclass(frozen=True, slots=True)
class Shrink:
    """What to leave out. Nothing by default.

    `keep_vocab`: a UTF-8 text whose tokens stay; `keep_scripts`: writing systems whose tokens
    stay. With neither all tokens do.
    """

    keep_vocab: Path | None = None
    keep_scripts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smaller checkpoint, and what the manifest says of how it was made."""

    checkpoint: Checkpoint
    record: dict[str, Any] = field(default_factory=dict)


def apply(checkpoint: Checkpoint, wanted: Shrink, notice: Callable[[str], None]) -> Shrunk:
    """`checkpoint` without what `wanted` leaves out; UsageError and NotFound name a wrong wish."""
    record: dict[str, Any] = {}
    if wanted.keep_vocab is not None or wanted.keep_scripts:
        checkpoint, record["vocabulary"] = _trim(checkpoint, wanted)
    return Shrunk(checkpoint, record)


def _trim(checkpoint: Checkpoint, wanted: Shrink) -> tuple[Checkpoint, dict[str, Any]]:
    corpus = None if wanted.keep_vocab is None else read_text(wanted.keep_vocab)
    kept = vocabulary.choose(checkpoint, corpus, wanted.keep_scripts)
    record: dict[str, Any] = {"kept": len(kept), "of": checkpoint.config["vocab_size"]}
    if corpus is not None:
        record["corpus_sha256"] = hashlib.sha256(corpus.encode()).hexdigest()
    if wanted.keep_scripts:
        record["scripts"] = list(wanted.keep_scripts)
    return vocabulary.TrimmedCheckpoint(checkpoint, kept), record


def read_text(path: Path) -> str:
    """The text in a file; UsageError when it is not UTF-8 or empty, NotFound when it is missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; convert it, as iconv does") from error
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if not text.strip():
        raise UsageError(f"{path} is empty; give a text in the language the model is for")
    return text
