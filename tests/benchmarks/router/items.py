"""One graded prompt, and the file of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Split = Literal["calibration", "dev", "test", "paraphrase", "typos", "distractors"]


@dataclass(frozen=True, slots=True)
class Item:
    """`template` names the wording, `answer` holds what is accepted (the first is the bare one),
    `choices` the candidates a lenient grader must not find beside it. The splits after "test" are
    shift sets: changed test items, never fitted on."""

    id: str
    family: str
    level: int
    template: str
    split: Split
    prompt: tuple[Mapping[str, str], ...]
    answer: tuple[str, ...]
    grader: str
    max_tokens: int
    choices: tuple[str, ...] = ()


def write(path: Path, items: Iterable[Item]) -> None:
    path.write_text("".join(to_line(item) for item in items), encoding="utf-8")


def to_line(item: Item) -> str:
    return json.dumps(asdict(item), ensure_ascii=False) + "\n"


def read(path: Path) -> list[Item]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        raw = json.loads(line)
        for name in ("prompt", "answer", "choices"):
            raw[name] = tuple(raw[name])
        found.append(Item(**raw))
    return found
