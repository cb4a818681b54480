"""What the privacy detectors find in made-up identifiers, and what they see where nothing is."""

from __future__ import annotations

import pydoc_data.topics
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from identifier_text import AMBIGUOUS, CLEAN, hidden, written
from identifiers import CHECKSUMMED, GROUPS, NOT_COVERED, VARIANTS, Identifier, make, pool

from edgellm.routing.privacy import find

# A model of names and plain words is what the guard does not have.
WITHOUT_PATTERN = ("names", "postal addresses", "birthdays", "anything said in plain words")


@dataclass
class Recall:
    """Shares by name: `kinds` of group and of writing, `clean` of texts with a false finding."""

    texts: int
    groups: dict[str, float] = field(default_factory=dict)
    variants: dict[str, float] = field(default_factory=dict)
    not_covered: dict[str, float] = field(default_factory=dict)
    clean: dict[str, float] = field(default_factory=dict)
    ambiguous: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def checksummed(self) -> float:
        """Mean recall of identifiers with a checksum."""
        return sum(self.groups[group] for group in CHECKSUMMED) / len(CHECKSUMMED)

    @property
    def false_share(self) -> float:
        return sum(self.clean.values()) / len(self.clean)


def covered(text: str, secret: str) -> bool:
    """Whether every character of the identifier, or of its password, is in a finding."""
    start = text.index(secret)
    end = start + len(secret)
    marked = {i for f in find(text) for i in range(f.start, f.end)}
    return all(i in marked for i in range(start, end))


def found(identifier: Identifier, c: random.Random, variant: str) -> tuple[bool, str]:
    text = hidden(identifier, c, variant)
    secret = VARIANTS[variant](identifier.text)
    if identifier.group.startswith("password"):
        # The words around a password are no secret; "a%b@host" may pass for an address as well.
        return bool(find(text)), text
    return covered(text, secret), text


def measure(texts: int, seed: int = 0) -> Recall:
    """`texts` for each group of identifiers and each kind of clean text."""
    c = random.Random(f"recall {seed}")
    result = Recall(texts)
    hits: dict[str, list[bool]] = {name: [] for name in VARIANTS}
    for group in GROUPS:
        good = []
        for i in range(texts):
            variant = c.choice(list(VARIANTS)) if i % 2 else "as typed"
            ok, text = found(make(group, c), c, variant)
            good.append(ok)
            hits[variant].append(ok)
            if not ok and len(result.missed) < 40:
                result.missed.append(f"{group}, {variant}: {text!r}")
        result.groups[group] = sum(good) / len(good)
    result.variants = {name: sum(ok) / max(len(ok), 1) for name, ok in hits.items()}
    result.not_covered = {name: _hard(change, c) for name, change in NOT_COVERED.items()}
    for name, text_of in CLEAN.items():
        result.clean[name] = _false(result, [text_of(c) for _ in range(texts)])
    result.clean["documentation of Python"] = _false(result, paragraphs())
    for name, text_of in AMBIGUOUS.items():
        result.ambiguous[name] = _false(Recall(0), [text_of(c) for _ in range(texts)])
    return result


def paragraphs() -> list[str]:
    """Real text that this Python brings along; it has no identifiers."""
    topics = pydoc_data.topics.topics.values()
    return [part for topic in topics for part in topic.split("\n\n") if len(part) > 80]


def _hard(change: Callable[[str], str], c: random.Random) -> float:
    """The share still found when written in a way that is not covered."""
    some = [identifier for group in CHECKSUMMED for identifier in pool(group)[:10]]
    hits = 0
    for identifier in some:
        changed = Identifier(identifier.kind, identifier.group, change(identifier.text),
                             identifier.before)  # fmt: skip
        hits += bool(find(written(changed, c)))
    return hits / len(some)


def _false(result: Recall, texts: list[str]) -> float:
    seen = 0
    for text in texts:
        findings = find(text)
        seen += bool(findings)
        for f in findings[: 1 if len(result.wrong) < 40 else 0]:
            result.wrong.append(f"{f.kind}: {text[max(f.start - 20, 0) : f.end + 20]!r}")
    return seen / len(texts)
