"""Quality: perplexity of a model, and how far it is from a reference on the same text.

    text ── windows ──▶ Window, … ── evaluate(model, reference) ──▶ Report

V vocabulary, R rows. Row r of a window's logits is what the model says about token r + 1. Rows are
taken one at a time, in float64: exact to well below the smallest difference worth reporting.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgellmError, NotFound, UsageError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class LogitsSource(Protocol):
    """A loaded model that shows its logits instead of choosing tokens."""

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, after whatever the model expects before it (BOS)."""
        ...

    def logits(self, ids: list[int]) -> Iterator[Float32]:
        """Chunks (R, V), together one row for each id, in order, from an empty cache."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is scored: `tokens` in all, each window's second half, or `score_all` of it.

    Scoring the second half gives every token at least half a window of context, as
    llama-perplexity does (tools/perplexity/perplexity.cpp in llama.cpp).
    """

    tokens: int = 4096
    window_tokens: int = 512
    score_all: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UsageError(f"the number of tokens to score must be 1 or more, got {self.tokens}")
        if self.window_tokens < 2:
            raise UsageError(f"a window needs 2 tokens or more, got {self.window_tokens}")


@dataclass(frozen=True, slots=True)
class Window:
    """Ids for one run of the model; those from position `first` on are scored."""

    ids: tuple[int, ...]
    first: int

    @property
    def scored(self) -> int:
        return len(self.ids) - self.first


@dataclass(frozen=True, slots=True)
class Report:
    """Perplexity (natural logarithms) over `tokens`; the rest None without a reference.

    KL is of the model from the reference, in nats a token: its mean and its 99th percentile.
    `top1_agreement` is the share of tokens at which both like the same one best.
    """

    perplexity: float
    kl_mean: float | None
    kl_p99: float | None
    top1_agreement: float | None
    tokens: int


def default_text() -> str:
    """The English text every CPython carries: the topics of help(). It differs by version."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise NotFound("this Python comes without its help texts; give --text FILE") from error
    return "\n".join(topics[name] for name in sorted(topics))


def windows(ids: Sequence[int], scope: Scope, prefix: Sequence[int] = ()) -> Iterator[Window]:
    """Windows of `ids`, one after another, until `scope.tokens` are scored or the text ends.

    Each starts with `prefix` (BOS), so only the first token of a window without one has no score.
    """
    size = scope.window_tokens - len(prefix)
    skipped = (0 if prefix else 1) if scope.score_all else size // 2
    left = scope.tokens
    for start in range(0, len(ids), size):
        part = ids[start : start + min(size, skipped + left)]
        if len(part) <= skipped or left == 0:
            return
        left -= len(part) - skipped
        yield Window((*prefix, *part), len(prefix) + skipped)


def text_windows(text: str, scope: Scope, sources: Sequence[LogitsSource]) -> list[Window]:
    """The windows of `text`; UsageError when it is too short or the sources' tokenizers differ."""
    ids = sources[0].encode(text)
    if any(source.encode(text) != ids for source in sources[1:]):
        raise UsageError("model and reference split the text differently; compare one tokenizer's")
    prefix = sources[0].encode("")
    if ids[: len(prefix)] != prefix:
        prefix = []
    found = list(windows(ids[len(prefix) :], scope, prefix))
    if not found:
        raise UsageError(
            f"the text has {len(ids)} tokens and the first {scope.window_tokens // 2} are only "
            "context; give a longer text or --all"
        )
    return found


def evaluate(
    scored: Iterable[Window], model: LogitsSource, reference: LogitsSource | None = None
) -> Report:
    """The Report of `model` over all windows, compared with `reference` where there is one."""
    perplexity, divergence = Perplexity(), Divergence()
    for window in scored:
        ours = rows(model, window)
        theirs = [None] * window.scored if reference is None else rows(reference, window)
        for row, expected, token in zip(ours, theirs, window.ids[window.first :], strict=True):
            logprobs = log_softmax(row)
            perplexity.add(logprobs, token)
            if expected is not None:
                divergence.add(log_softmax(expected), logprobs)
    compared = divergence.tokens > 0
    return Report(
        perplexity.value,
        divergence.mean if compared else None,
        divergence.p99 if compared else None,
        divergence.top1_agreement if compared else None,
        perplexity.tokens,
    )


def rows(source: LogitsSource, window: Window) -> Iterator[Float32]:
    """The rows (V,) that predict the window's scored tokens."""
    first, last = window.first - 1, len(window.ids) - 1
    seen = 0
    for chunk in source.logits(list(window.ids)):
        yield from chunk[max(first - seen, 0) : max(last - seen, 0)]
        seen += len(chunk)
    if seen != len(window.ids):
        raise EdgellmError(f"the model gave {seen} rows of logits for {len(window.ids)} tokens")


def log_softmax(row: Float32) -> Float64:
    """Natural-log probabilities (V,) of one row of logits; EdgellmError when it has a NaN."""
    peak = float(row.max())
    if not math.isfinite(peak):
        raise EdgellmError(
            f"a model produced {peak} among its {row.size} logits; export it with a higher "
            "precision or try --ep cpu"
        )
    values = row.astype(np.float64) - peak
    values -= math.log(float(np.exp(values).sum()))
    return values


class Perplexity:
    """exp of the mean of -log p(token)."""

    def __init__(self) -> None:
        self.tokens = 0
        self._nats = 0.0

    def add(self, logprobs: Float64, token: int) -> None:
        self.tokens += 1
        self._nats -= float(logprobs[token])

    @property
    def value(self) -> float:
        """inf when a token was impossible, or beyond what a float holds."""
        mean = self._nats / self.tokens
        return math.exp(mean) if mean < math.log(sys.float_info.max) else math.inf


class Divergence:
    """KL(reference ‖ model) at each token, and how often both like the same token best."""

    def __init__(self) -> None:
        self._kl: list[float] = []
        self._agreed = 0

    def add(self, reference: Float64, model: Float64) -> None:
        if reference.shape != model.shape:
            raise UsageError(
                f"the model has {model.size} logits and the reference {reference.size}; "
                "compare models of one vocabulary"
            )
        likely = np.exp(reference)
        possible = likely > 0  # 0 * log 0 is 0
        if possible.all():
            kl = float(np.dot(likely, reference - model))
        else:
            kl = float(np.dot(likely[possible], reference[possible] - model[possible]))
        # A divergence is never negative; rounding may make it so.
        self._kl.append(max(kl, 0.0))
        self._agreed += int(reference.argmax() == model.argmax())

    @property
    def tokens(self) -> int:
        return len(self._kl)

    @property
    def mean(self) -> float:
        return math.fsum(self._kl) / self.tokens

    @property
    def p99(self) -> float:
        """By nearest rank: interpolating between two infinities would give NaN."""
        return sorted(self._kl)[math.ceil(0.99 * self.tokens) - 1]

    @property
    def top1_agreement(self) -> float:
        return self._agreed / self.tokens
