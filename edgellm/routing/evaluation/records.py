"""Recorded answers: graded prompts, and what a local model showed while it answered them.

    folder/items.jsonl        the prompts, one JSON object a line
    folder/<precision>.npz    what the bundle of that precision answered, aligned to the items

Routers are fitted and measured on these files without the model: it answered once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt, NotFound
from edgellm.routing.signals import Observed
from edgellm.stream import FinishReason, Hidden, TokenLogprob

FINISH: tuple[FinishReason, ...] = ("stop", "length")


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer and whether it was right; `template` groups prompts of one wording."""

    id: str
    family: str
    level: int
    template: str
    split: str
    observed: Observed
    strict: bool
    lenient: bool


@dataclass(frozen=True, slots=True)
class Records:
    """`meta` says which bundle answered: model, precision, weights_sha256."""

    meta: Mapping[str, Any]
    graded: tuple[Graded, ...]

    def where(self, keep: Callable[[Graded], bool]) -> Records:
        return Records(self.meta, tuple(g for g in self.graded if keep(g)))

    def split(self, *names: str) -> Records:
        return self.where(lambda g: g.split in names)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Leniently graded (N,)."""
        return np.array([g.lenient for g in self.graded], bool)

    def column(self, name: str) -> NDArray[Any]:
        return np.array([getattr(g, name) for g in self.graded])


def read(folder: Path, precision: str) -> Records:
    """The recording of one precision. NotFound and Corrupt name the file."""
    items = read_items(folder / "items.jsonl")
    path = folder / f"{precision}.npz"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.npz"))) or "none"
        raise NotFound(f"{path} does not exist; recorded precisions here: {known}")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Records(json.loads(str(arrays["meta"][0])), tuple(_graded(items, arrays)))
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise Corrupt(f"{path} is not a recording: {error!r}; record it again") from error


def read_items(path: Path) -> list[dict[str, Any]]:
    """The graded prompts of a JSONL file; Corrupt names the line that is not JSON."""
    if not path.is_file():
        raise NotFound(f"{path} does not exist")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise Corrupt(f"{path} line {number} is not JSON: {error}") from error
    return found


def _graded(
    items: Sequence[Mapping[str, Any]], arrays: Mapping[str, NDArray[Any]]
) -> Iterable[Graded]:
    offsets, ends, texts = arrays["offsets"], arrays["text_offsets"], arrays["text"].tobytes()
    if len(offsets) != len(items) + 1:
        raise ValueError(f"{len(offsets) - 1} answers for {len(items)} items")
    hidden = "answer_mean" in arrays
    for i, item in enumerate(items):
        span = slice(int(offsets[i]), int(offsets[i + 1]))
        columns = (arrays[name][span] for name in ("token_ids", "logprob", "entropy", "margin"))
        tokens = tuple(
            TokenLogprob("", int(t), float(lp), (), float(e), float(m))
            for t, lp, e, m in zip(*columns, strict=True)
        )
        states = None
        if hidden:
            names = ("prompt_last", "prompt_mean", "answer_mean")
            states = Hidden(*(arrays[name][i].astype(np.float32) for name in names))
        observed = Observed(
            item["prompt"][-1]["content"],
            int(arrays["prompt_tokens"][i]),
            tokens,
            FINISH[int(arrays["finish"][i])],
            states,
            texts[int(ends[i]) : int(ends[i + 1])].decode(),
        )
        yield Graded(
            item["id"], item["family"], item["level"], item["template"], item["split"],
            observed, bool(arrays["strict"][i]), bool(arrays["lenient"][i]),
        )  # fmt: skip
