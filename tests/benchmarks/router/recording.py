"""The file of recorded answers, <precision>.npz beside items.jsonl: arrays without pickle.

Aligned to the items (N): text (UTF-8 bytes, cut by text_offsets), prompt_tokens, finish (0 stop,
1 length), strict, lenient, prompt_last, prompt_mean, answer_mean (N, D) float16. Flat over all
tokens, cut by offsets (N + 1): token_ids, logprob, entropy, margin. meta: one JSON string.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import items
import numpy as np
from items import Item
from numpy.typing import NDArray

HIDDEN = ("prompt_last", "prompt_mean", "answer_mean")
# Hidden states are rounded to this share of their column's standard deviation, and lie column by
# column: noise of 7 % of it (1/4 / sqrt(12)), for less than half of the bytes.
HIDDEN_STEP = 1 / 4


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The answers of a part file; what an interrupted run left half-written is dropped."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def pack(folder: Path, target: Path, precision: str, meta: dict[str, Any]) -> None:
    """Join all parts of a precision in `folder` into `target`, which may be the same.

    The items of `target` are kept if it has some: all must be answered then. Else it gets those
    that are answered so far.
    """
    found = {
        line["id"]: line
        for path in sorted(folder.glob(f"{precision}.*.part.jsonl"))
        for line in lines(path)
    }
    target.mkdir(parents=True, exist_ok=True)
    if (target / "items.jsonl").exists():
        known = read_items(target)
        missing = sum(item.id not in found for item in known)
        if missing:
            raise SystemExit(f"{missing} of {len(known)} answers are missing; record on")
    else:
        known = [item for item in read_items(folder) if item.id in found]
        items.write(target / "items.jsonl", known)
    digest = hashlib.sha256((target / "items.jsonl").read_bytes()).hexdigest()
    answers = [found[item.id] for item in known]
    write(target / f"{precision}.npz", answers, meta | {"items_sha256": digest})
    print(f"{len(known)} answers in {target / f'{precision}.npz'}")


def write(path: Path, answers: Sequence[dict[str, Any]], meta: dict[str, Any]) -> None:
    texts = [line["text"].encode() for line in answers]
    tokens = [token for line in answers for token in line["tokens"]]
    columns = np.array(tokens, np.float64).reshape(-1, 4)
    raw = [np.frombuffer(base64.b64decode(line["hidden"]), np.float16) for line in answers]
    states = np.stack(raw).reshape(len(answers), 3, -1).astype(np.float32)
    np.savez_compressed(
        path,
        text=np.frombuffer(b"".join(texts), np.uint8),
        text_offsets=_offsets([len(text) for text in texts]),
        offsets=_offsets([len(line["tokens"]) for line in answers]),
        token_ids=columns[:, 0].astype(np.int32),
        logprob=columns[:, 1].astype(np.float16),
        entropy=columns[:, 2].astype(np.float16),
        margin=columns[:, 3].astype(np.float16),
        prompt_tokens=np.array([line["prompt_tokens"] for line in answers], np.int32),
        finish=np.array([line["finish"] == "length" for line in answers], np.uint8),
        strict=np.array([line["strict"] for line in answers]),
        lenient=np.array([line["lenient"] for line in answers]),
        meta=np.array([json.dumps(meta | {"hidden_step": HIDDEN_STEP})]),
        **{name: _rounded(states[:, i]) for i, name in enumerate(HIDDEN)},
    )


def _offsets(lengths: Sequence[int]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _rounded(states: NDArray[np.float32]) -> NDArray[np.float16]:
    step = np.maximum(states.std(axis=0) * HIDDEN_STEP, 1e-6)
    rounded: NDArray[np.float16] = (np.round(states / step) * step).astype(np.float16)
    return np.asfortranarray(rounded)


def text_of(recorded: Mapping[str, Any], i: int) -> str:
    """Answer `i` of an opened npz."""
    start, end = recorded["text_offsets"][i : i + 2]
    return bytes(recorded["text"][start:end]).decode()


def read_items(folder: Path) -> list[Item]:
    return items.read(folder / "items.jsonl")
