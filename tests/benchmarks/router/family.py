"""What a family of prompts is made of: a maker of cases, and ten ways to word them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

LEVELS = (1, 2, 3, 4, 5)
# By the number of a template: 40 % calibration, 20 % dev, 40 % test.
SPLITS = ("calibration", "test", "dev", "test", "calibration") * 2


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True, slots=True)
class Case:
    """One question without its wording: `fields` fill a template, `answer` is the bare answer."""

    fields: Mapping[str, object]
    answer: str
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dice:
    """Chance for one case. Pools are parted by split, so that no word met in calibration is asked
    for again in the test."""

    random: random.Random
    split: str

    def part(self, pool: Sequence[T]) -> list[T]:
        """The pool's share for this split."""
        mine = [x for i, x in enumerate(pool) if SPLITS[i % len(SPLITS)] == self.split]
        return mine or list(pool)

    def pick(self, pool: Sequence[T]) -> T:
        return self.random.choice(self.part(pool))

    def any(self, pool: Sequence[T]) -> T:
        return self.random.choice(list(pool))

    def some(self, pool: Sequence[T], count: int) -> list[T]:
        return self.random.sample(list(pool), count)

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)


@dataclass(frozen=True, slots=True)
class Family:
    """`make` gives a case of a level. `wording` holds one template a line: what the user asks, a
    bar, what the assistant says in the `shots` example turns before the question."""

    name: str
    grader: str
    max_tokens: int
    shots: int
    make: Callable[[Dice, int], Case]
    wording: str
    system: str | None = None
    templates: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        lines = [line.strip() for line in self.wording.strip().splitlines()]
        pairs = tuple((a.strip(), b.strip()) for a, b in (line.split("|") for line in lines))
        if len(pairs) != len(SPLITS):
            raise ValueError(f"{self.name} has {len(pairs)} templates, not {len(SPLITS)}")
        object.__setattr__(self, "templates", pairs)
