"""Sending less: of a long document, only the passages that a question is about.

    last user message ── passages ── BM25 against the question ── the best, in their order ──▶ sent

What stays here is neither paid for nor seen by anybody. Passages are ranked by Okapi BM25
(Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75), which needs no model and no index.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgellm.errors import UsageError
from edgellm.stream import Message, Request

K1, B = 1.2, 0.75
# About 60 tokens of English: short enough to leave much out, long enough to be understood alone.
PASSAGE_CHARACTERS = 280
# A shorter message is not worth cutting.
LEAST_CHARACTERS = 1200
# Fewer tokens hold no passage.
LEAST_TOKENS = 16
CHARACTERS_PER_TOKEN = 4
OMITTED = "[…]"
_WORD = re.compile(r"[^\W_]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
# Words that every passage has say nothing about any.
COMMON_WORDS = """
a an and are as at be by did do does for from had has have how in is it of on or that the there
these this to was were what when where which who whom whose why will with
"""
COMMON = frozenset(COMMON_WORDS.split())


@dataclass(frozen=True, slots=True)
class Shortened:
    """The request with less text, and how many characters of how many its questions have now."""

    request: Request
    kept_characters: int
    characters: int

    @property
    def share(self) -> float:
        return self.kept_characters / self.characters if self.characters else 1.0

    @property
    def kept_tokens(self) -> int:
        """About how many tokens are left."""
        return self.kept_characters // CHARACTERS_PER_TOKEN

    @property
    def tokens(self) -> int:
        """About how many tokens there were."""
        return self.characters // CHARACTERS_PER_TOKEN


def shorten(request: Request, tokens: int) -> Shortened:
    """The request with every long user message cut to about `tokens` (4 characters each).

    The question is kept whole: the last paragraph, or the first where only that one asks. Earlier
    messages keep what the last question is about, too. Raw prompts, short messages and those of
    others stay as they are. UsageError for fewer than LEAST_TOKENS.
    """
    if tokens < LEAST_TOKENS:
        raise UsageError(f"passages need {LEAST_TOKENS} tokens or more, got {tokens}")
    if not request.messages or request.messages[-1].role != "user":
        return Shortened(request, 0, 0)
    limit = tokens * CHARACTERS_PER_TOKEN
    last = request.messages[-1].content
    now = _parts(last)[0] if _is_long(last, limit) else last
    messages, kept, characters = [], 0, 0
    for message in request.messages:
        if message.role == "user":
            characters += len(message.content)
            message = Message("user", _cut(message.content, limit, now))
            kept += len(message.content)
        messages.append(message)
    if kept < characters:
        request = replace(request, messages=tuple(messages))
    return Shortened(request, kept, characters)


def _is_long(text: str, limit: int) -> bool:
    return len(text) > max(limit, LEAST_CHARACTERS)


def _cut(text: str, limit: int, now: str) -> str:
    """What of a long message its own question, and the one asked `now`, are about."""
    if not _is_long(text, limit):
        return text
    question, document, first = _parts(text)
    room = max(limit - len(question), PASSAGE_CHARACTERS)
    kept = select(document, f"{question} {now}", room)
    return f"{question}\n\n{kept}" if first else f"{kept}\n\n{question}"


def select(document: str, question: str, limit: int) -> str:
    """The passages nearest to the question, `limit` characters of them, gaps marked."""
    passages = split(document)
    scores = bm25(passages, question)
    chosen: set[int] = set()
    room = limit
    for index in sorted(range(len(passages)), key=lambda i: (-scores[i], i)):
        cost = len(passages[index]) + len(OMITTED) + 2
        if scores[index] <= 0 or cost > room:
            continue
        chosen.add(index)
        room -= cost
    parts, last = [], -1
    for index in sorted(chosen):
        if index != last + 1:
            parts.append(OMITTED)
        parts.append(passages[index])
        last = index
    if last != len(passages) - 1:
        parts.append(OMITTED)
    return "\n".join(parts)


def split(document: str) -> list[str]:
    """Passages of whole sentences, up to PASSAGE_CHARACTERS each where sentences allow it."""
    passages: list[str] = []
    for sentence in (s.strip() for s in _SENTENCE.split(document)):
        if not sentence:
            continue
        if passages and len(passages[-1]) + len(sentence) < PASSAGE_CHARACTERS:
            passages[-1] += " " + sentence
        else:
            passages.append(sentence)
    return passages


def bm25(passages: Sequence[str], question: str) -> list[float]:
    """How much each passage is about the question."""
    counts = [Counter(_words(passage)) for passage in passages]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / max(len(lengths), 1) or 1.0
    scores = [0.0] * len(passages)
    for word in set(_words(question)) - COMMON:
        having = sum(word in count for count in counts)
        if not having:
            continue
        rarity = math.log(1 + (len(passages) - having + 0.5) / (having + 0.5))
        for i, count in enumerate(counts):
            often = count[word]
            scores[i] += rarity * often * (K1 + 1) / (often + K1 * (1 - B + B * lengths[i] / mean))
    return scores


def _parts(text: str) -> tuple[str, str, bool]:
    """(question, document, whether the question came first)."""
    head, _, rest = text.partition("\n")
    body, _, tail = text.rstrip().rpartition("\n")
    if "?" in head and "?" not in tail and rest.strip():
        return head.strip(), rest, True
    if body.strip():
        return tail.strip(), body, False
    sentences = _SENTENCE.split(text.strip())
    return sentences[-1], " ".join(sentences[:-1]), False


def _words(text: str) -> list[str]:
    """Lower-case words, plural and possessive endings cut: "rivers" finds "river"."""
    return [re.sub(r"(?<=\w{3})(?:es|s)$", "", word) for word in _WORD.findall(text.lower())]
