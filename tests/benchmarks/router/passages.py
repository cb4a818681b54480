"""Long documents: what is still sent of them, and whether the answer is in it.

Real: the cutting, the text around the needles (the documentation that Python brings along), the
count of words. Made up: the needles and the questions. Whether a remote would answer is not asked
here: only whether it still could.
"""

from __future__ import annotations

import pydoc_data.topics
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import plain
from target_rows import Job, Row, least

from edgellm.routing.spans import shorten
from edgellm.stream import Message, Request

DOCUMENTS = 200
# Tokens that may be sent, and about how many the documents have.
LIMITS, TOKENS = (256, 512, 1024), (1500, 3000, 6000)
CHOSEN_LIMIT = 512
FIRST = ("Anna", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana")
LAST = ("Berg", "Ito", "Nowak", "Silva", "Roth", "Okoye", "Lind", "Weiss")
NAMES = tuple(f"{first} {last}" for first in FIRST for last in LAST)
TOWNS = ("Oslo", "Lima", "Turin", "Quito", "Basel", "Kyoto", "Porto", "Hanoi")
# Sentences like the needle about others, who share a name with the one asked about.
DECOYS = 40


@dataclass(frozen=True, slots=True)
class Needle:
    """Sentences to hide, a question, and what must be in the text for an answer to it."""

    hidden: tuple[str, ...]
    question: str
    needed: tuple[str, ...]


def same_words(c: random.Random) -> Needle:
    """The question has the words of its answer, and so have all decoys."""
    names = c.sample(NAMES, DECOYS + 1)
    said = [f"The office of {name} is in room {c.randint(100, 999)}." for name in names]
    return Needle(tuple(said), f"In which room is the office of {names[0]}?", (said[0],))


def other_words(c: random.Random) -> Needle:
    """Only the name connects question and answer."""
    names = c.sample(NAMES, DECOYS + 1)
    said = [f"{name} grew up in {c.choice(TOWNS)} and stayed there." for name in names]
    return Needle(tuple(said), f"What city does {names[0]} come from?", (said[0],))


def two_hops(c: random.Random) -> Needle:
    """The second sentence shares only the word city with the question."""
    name, town, code = c.choice(NAMES), c.choice(TOWNS), f"K{c.randint(100, 999)}"
    first, second = f"{name} leads project {code}.", f"{code} is funded by the city of {town}."
    return Needle((first, second), f"Which city pays for what {name} leads?", (first, second))


def paraphrase(c: random.Random) -> Needle:
    """No word in common: passages found by words cannot find it."""
    fee = c.randint(11, 98)
    needle = f"Membership costs {fee} crowns per year."
    return Needle((needle,), "How much must I pay annually to belong?", (needle,))


def counting(c: random.Random) -> Needle:
    """The answer needs every mention."""
    said = tuple(f"{name} brought a cake to the picnic." for name in c.sample(NAMES, 6))
    return Needle(said, "How many people brought a cake to the picnic?", said)


# What the target is about, and what is harder than that.
ASKED: Mapping[str, Callable[[random.Random], Needle]] = {
    "same words": same_words,
    "other words, same name": other_words,
}
HARD: Mapping[str, Callable[[random.Random], Needle]] = {
    "two hops, one word in common": two_hops,
    "no word in common": paraphrase,
    "counting six mentions": counting,
}


@dataclass(frozen=True, slots=True)
class Sent:
    """Shares: of the input tokens that stay here, and of questions whose answer is still sent."""

    spared: float
    kept: float


def document(c: random.Random, tokens: int, needle: Needle) -> str:
    """Real paragraphs with the needles at random places between their sentences."""
    paragraphs: list[str] = []
    while sum(len(p) for p in paragraphs) < tokens * 4:
        paragraphs += _topic(c.choice(sorted(pydoc_data.topics.topics)))
    for hidden in needle.hidden:
        at = c.randrange(len(paragraphs))
        sentences = re.split(r"(?<=[.!?])\s+", paragraphs[at])
        sentences.insert(c.randint(0, len(sentences)), hidden)
        paragraphs[at] = " ".join(sentences)
    return "\n\n".join(paragraphs)


def _topic(name: str) -> list[str]:
    text = pydoc_data.topics.topics[name]
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def measure(make: Callable[[random.Random], Needle], limit: int, number: int, seed: int) -> Sent:
    """Over `number` documents of all sizes."""
    c = random.Random(f"passages {seed}")
    before = after = kept = 0
    for i in range(number):
        needle = make(c)
        text = f"{document(c, TOKENS[i % len(TOKENS)], needle)}\n\n{needle.question}"
        sent = shorten(Request(messages=(Message("user", text),)), limit).request
        content = sent.messages[0].content
        before += len(plain.words(text))
        after += len(plain.words(content))
        kept += all(fact in content for fact in needle.needed) and needle.question in content
    return Sent(1 - after / before, kept / number)


def rows(job: Job) -> Iterator[Row]:
    """Part `passages` of the target table."""
    real, said = "cutting, documents (Python's), counts", f"{DOCUMENTS} needles and questions each"
    for limit in LIMITS:
        found = {name: measure(make, limit, DOCUMENTS, 1) for name, make in ASKED.items()}
        spared = sum(f.spared for f in found.values()) / len(found)
        worst = min(f.kept for f in found.values())
        text = f"-{spared:.1%} ({', '.join(f'{n}: {f.kept:.1%} kept' for n, f in found.items())})"
        # A saving that loses more than two answers of a hundred is none.
        value = spared if worst >= 0.98 else 0.0
        bounds = (least(0.6, "-60 % at ≤ 2 pt"), least(0.8, "-80 % at ≤ 2 pt"))
        judged = bounds if limit == CHOSEN_LIMIT else (None, None)
        name = f"remote input, {limit} tokens sent at most"
        yield Row("passages", name, text, value, *judged, real, said)
    for name, make in HARD.items():
        seen = measure(make, CHOSEN_LIMIT, DOCUMENTS, 1)
        text = f"-{seen.spared:.1%}, answer still there in {seen.kept:.1%}"
        yield Row("passages", f"harder: {name}", text, None, None, None, real, said)
