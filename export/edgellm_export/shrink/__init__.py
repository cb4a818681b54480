"""Making a model smaller in other ways than by bits, before its weights are stored.

    Checkpoint ── layers dropped ── MLPs narrowed ── vocabulary trimmed ──▶ Checkpoint

Each step is a Checkpoint around another (wrapped), so that every architecture and every recipe
takes it. measure runs the model to say what a step changes; bpe and scripts choose tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import NotFound, UsageError
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.quantize.capture import Ids, Notice, capture
from edgellm_export.shrink import layers, measure, vocabulary, width

# Windows of calibration text that the remaining neurons are fitted to, beside those judged by.
FITTED_WINDOWS = 30


@dataclass(frozen=True, slots=True)
class Shrink:
    """What to leave out. Nothing by default.

    `keep_vocab`: a UTF-8 text whose tokens stay; `keep_scripts`: writing systems whose tokens
    stay; with neither all tokens do. `drop_layers`: how many layers go. `mlp_width`: how many
    neurons stay in each MLP. What goes is chosen on the UTF-8 `text`, None for the model's own
    words.
    """

    keep_vocab: Path | None = None
    keep_scripts: tuple[str, ...] = ()
    drop_layers: int | None = None
    mlp_width: int | None = None
    text: Path | None = None

    @property
    def measured(self) -> bool:
        """Whether the model has to run on a text to tell what can go."""
        return self.drop_layers is not None or self.mlp_width is not None


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smaller checkpoint, and what the manifest says of how it was made."""

    checkpoint: Checkpoint
    record: dict[str, Any] = field(default_factory=dict)


def apply(checkpoint: Checkpoint, wanted: Shrink, notice: Notice) -> Shrunk:
    """`checkpoint` without what `wanted` leaves out.

    UsageError and NotFound name a wrong wish, Incompatible a model that it does not fit.
    """
    record: dict[str, Any] = {}
    if wanted.measured:
        with tempfile.TemporaryDirectory(prefix="edgellm-shrink.") as scratch:
            checkpoint, record = _thin(checkpoint, wanted, Path(scratch), notice)
    if wanted.keep_vocab is not None or wanted.keep_scripts:
        checkpoint, record["vocabulary"] = _trim(checkpoint, wanted)
    return Shrunk(checkpoint, record)


def _thin(
    checkpoint: Checkpoint, wanted: Shrink, scratch: Path, notice: Notice
) -> tuple[Checkpoint, dict[str, Any]]:
    """Fewer layers, then narrower ones; both are judged by the whole model's logits."""
    if wanted.mlp_width is not None:
        width.check(checkpoint, wanted.mlp_width)
    text = None if wanted.text is None else read_text(wanted.text)
    record: dict[str, Any] = {}
    model = measure.imported(checkpoint, _made(scratch / "whole"))
    extra = 0 if wanted.mlp_width is None else FITTED_WINDOWS
    ids = measure.windows(model, text, measure.WINDOWS + extra, notice)
    judged, fitted = ids[: measure.WINDOWS], ids[measure.WINDOWS :]
    whole = measure.Switched(model, judged)
    if wanted.drop_layers is not None:
        choice = layers.choose(whole, wanted.drop_layers, notice)
        for line in choice.table():
            notice(line)
        notice(f"without {len(choice.dropped)} layers: KL {choice.kl:.4g} nats a token")
        checkpoint = layers.FewerLayers(checkpoint, choice.kept())
        record["layers"] = choice.to_json()
    if wanted.mlp_width is not None:
        record["mlp"] = {"width": wanted.mlp_width, "of": checkpoint.config["intermediate_size"]}
        checkpoint = _narrow(checkpoint, wanted.mlp_width, fitted, scratch, notice)
        left = measure.teacher_of(checkpoint, judged, _made(scratch / "left"))
        kl = measure.divergence(whole.teacher, left)
        notice(f"with MLPs of {wanted.mlp_width} neurons: KL {kl:.4g} nats a token")
        record["mlp"]["kl"] = float(f"{kl:.4g}")
    return checkpoint, record


def _narrow(
    checkpoint: Checkpoint, neurons: int, ids: Ids, scratch: Path, notice: Notice
) -> Checkpoint:
    if not len(ids):
        raise UsageError(
            f"--mlp-width needs a text of {(measure.WINDOWS + 1) * measure.WINDOW_TOKENS} tokens "
            "or more; give a longer one"
        )
    model = measure.imported(checkpoint, _made(scratch / "fewer"))
    downs = {name: matrix for name, matrix in model.matrices.items() if name.endswith(".down")}
    fed = dataclasses.replace(model, matrices=downs)
    statistics = capture(fed, ids, _made(scratch / "fed"), notice)
    return width.narrow(checkpoint, neurons, statistics)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
