"""The graded prompts: always the same, from a seed.

    python tests/benchmarks/router/generate.py --out DIR

20 families x 5 levels x 10 templates x 2 items, and two small slices (questions without an answer,
questions about an earlier turn). A template belongs to one split, so what is fitted on
calibration meets only unseen wordings in the test; pools of words are parted the same way. The
shift sets change test items: other wording, typing errors, a longer context.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from collections.abc import Iterator
from pathlib import Path

import context_tasks
import items
import knowledge_tasks
import number_tasks
import word_tasks
from family import LEVELS, SPLITS, Case, Dice, Family
from items import Item, Split

SEED = 20
FAMILIES: tuple[Family, ...] = (
    *word_tasks.FAMILIES, *number_tasks.FAMILIES, *context_tasks.FAMILIES, *knowledge_tasks.FAMILIES
)  # fmt: skip
# Items of a template and level; slices that only one policy looks at are small.
ITEMS, SMALL = 2, 1
SLICES = ("unanswerable", "turns")
SHIFTS: tuple[Split, ...] = ("paraphrase", "typos", "distractors")
# One of so many test items enters a shift set.
SHIFT_EVERY = 8

# Small pools run out: then a case comes again.
TRIES = 50

PARAPHRASES = (
    "Hey, quick question for you: {ask} Thanks a lot!",
    "Would you mind helping me out here? {ask}",
    "My colleague and I were wondering about this one. {ask} Any help is welcome.",
    "Task for today:\n{ask}\nTake it easy and just do it.",
)
ASIDES = (
    "The meeting on Thursday was moved to the small room on the second floor.",
    "Our printer is out of paper again, so please bring some when you come.",
    "It rained for most of the week and the garden is very green now.",
    "The new coffee machine has a long manual that nobody has read.",
    "Last summer we walked along the coast until the path ended at a lighthouse.",
    "The train was late, which gave me time to finish the book about whales.",
    "There is a small bakery near the station that opens very early.",
    "The neighbors painted their fence and then their door in the same tone.",
    "A parcel arrived for the office next door and is waiting at the desk.",
    "We should clean the shelves before the visitors come in the spring.",
)


def generate(seed: int = SEED) -> list[Item]:
    """All items, shift sets last."""
    every = (item for family in FAMILIES for item in _of_family(family, seed))
    plain = list({json.dumps(item.prompt): item for item in every}.values())
    return [*plain, *(item for shift in SHIFTS for item in _shifted(plain, shift, seed))]


def _of_family(family: Family, seed: int) -> Iterator[Item]:
    count = SMALL if family.name in SLICES else ITEMS
    for number, split in enumerate(SPLITS):
        for level in LEVELS:
            seen: set[str] = set()
            for i in range(count):
                name = f"{family.name}-{level}-{number}-{i}"
                dice = Dice(random.Random(f"{seed} {name}"), split)
                yield _item(family, name, number, level, dice, seen)


def _item(family: Family, name: str, number: int, level: int, dice: Dice, seen: set[str]) -> Item:
    case = _new_case(family, level, dice, seen)
    ask, say = family.templates[number]
    # Examples come from the whole pool, and are never the question itself.
    examples = Dice(dice.random, "")
    told = {_key(case)}
    shown = [_new_case(family, level, examples, told) for _ in range(family.shots)]
    prompt = [turn for shot in shown for turn in _turns(ask, say, shot)]
    said = _fill(say, case)
    if family.name == "turns":
        prompt = [_turn("user", said), _turn("assistant", "OK, I will remember that.")]
    prompt.append(_turn("user", _fill(ask, case)))
    full = () if family.name in SLICES else (said,)
    accepted = dict.fromkeys((case.answer, *case.also, *full))
    return Item(
        id=name,
        family=family.name,
        level=level,
        template=f"{family.name}/{number}",
        split=dice.split,  # type: ignore[arg-type]
        prompt=tuple(prompt),
        answer=tuple(accepted),
        grader=family.grader,
        max_tokens=family.max_tokens,
        choices=case.choices,
    )


def _new_case(family: Family, level: int, dice: Dice, seen: set[str]) -> Case:
    """A case that the template has not had yet, where the pool allows."""
    for _ in range(TRIES):
        case = family.make(dice, level)
        if _key(case) not in seen:
            break
    seen.add(_key(case))
    return case


def _key(case: Case) -> str:
    return repr(sorted(case.fields.items()))


def _turns(ask: str, say: str, case: Case) -> list[dict[str, str]]:
    return [_turn("user", _fill(ask, case)), _turn("assistant", _fill(say, case))]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _fill(text: str, case: Case) -> str:
    return text.format(answer=case.answer, **case.fields)


def _shifted(plain: list[Item], shift: Split, seed: int) -> Iterator[Item]:
    test = [item for item in plain if item.split == "test"]
    # Another part of the test for each shift, all families and levels alike.
    chosen = test[SHIFTS.index(shift) :: SHIFT_EVERY]
    for item in chosen:
        rng = random.Random(f"{seed} {shift} {item.id}")
        *before, last = item.prompt
        changed = _turn("user", _change(shift, last["content"], rng, item))
        yield _replaced(item, shift, (*before, changed))


def _replaced(item: Item, shift: Split, prompt: tuple[dict[str, str], ...]) -> Item:
    raw = {name: getattr(item, name) for name in Item.__slots__}
    return Item(**{**raw, "id": f"{item.id}-shift-{shift}", "split": shift, "prompt": prompt})


def _change(shift: Split, text: str, rng: random.Random, item: Item) -> str:
    if shift == "paraphrase":
        return rng.choice(PARAPHRASES).format(ask=text)
    if shift == "distractors":
        return " ".join(rng.sample(ASIDES, 5)) + "\n\n" + text
    number = int(item.template.rpartition("/")[2])
    family = next(family for family in FAMILIES if family.name == item.family)
    return _mistyped(text, family.templates[number][0], rng)


def _mistyped(text: str, template: str, rng: random.Random) -> str:
    """Typing errors and lost capitals in the wording; what is asked about stays as it is."""
    wording = {
        word
        for literal, *_ in string.Formatter().parse(template)
        for word in literal.split()
        if len(word) > 3 and word.isalpha()
    }
    changed = []
    for word in text.split(" "):
        if word in wording and rng.random() < 0.7:
            at = rng.randrange(1, len(word) - 1)
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            dropped = word[:at] + word[at + 1 :]
            word = rng.choice((swapped, dropped, word.lower(), word.upper()))
        changed.append(word)
    return " ".join(changed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write items.jsonl.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = generate(args.seed)
    items.write(args.out / "items.jsonl", made)
    print(f"{len(made)} items in {args.out / 'items.jsonl'}")


if __name__ == "__main__":
    main()
