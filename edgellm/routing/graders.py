"""Whether an answer is right: two verdicts for every answer, without asking a model.

    grade("number", "12 + 7 = 19", ["19"]) → Grade(strict=False, lenient=True)

strict   the answer is what is expected and nothing else
lenient  what is expected can be read from the answer, which names no rival and denies nothing

A lenient verdict is what a router is calibrated on: it asks whether the model knew, not whether it
kept to a format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from edgellm.errors import UsageError

NUMBER = re.compile(
    r"(?<![\w.])[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w)|(?<![\w.])[-+]?\d+(?:\.\d+)?"
)
# Before the expected words and in the same sentence, these turn the answer round.
DENIAL = re.compile(
    r"\b(not|no|never|neither|nor|isn't|aren't|wasn't|cannot|can't|don't|doesn't)\b"
)
SENTENCE = re.compile(r"[.!?;\n]+(?:\s+|$)")
# "Paris or London" and "either" are guesses.
GUESS = re.compile(r"\b(or|either)\b")
# So far before the expected words a denial may stand and still mean them.
DENIAL_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Grade:
    strict: bool
    lenient: bool


Lenient = Callable[[str, Sequence[str], Sequence[str]], bool]


def grade(grader: str, text: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> Grade:
    """The verdicts on `text`; `choices` are candidates of which a right answer names only its own.

    UsageError names a grader that does not exist, or an expected answer that it cannot use.
    """
    if grader not in GRADERS:
        raise UsageError(f"unknown grader {grader!r}; there are: {', '.join(GRADERS)}")
    if not accepted:
        raise UsageError("an item needs at least one accepted answer")
    strict, lenient = GRADERS[grader]
    right = strict(text, accepted, choices)
    return Grade(right, right or lenient(text, accepted, choices))


def _same_text(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    return _trimmed(text) in {_trimmed(answer) for answer in accepted}


def _trimmed(text: str) -> str:
    """Without the white space and the full stop at the end."""
    return " ".join(text.split()).rstrip(".")


def _loosely_same(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    """The answer as it is written (case counts), alone in a line or behind "is" or a colon."""
    wanted = {_unquoted(_trimmed(answer)) for answer in accepted}
    if _unquoted(_trimmed(text)) in wanted:
        return True
    lines = [line for line in text.strip().splitlines() if line.strip()]
    tails = (re.split(r":\s+|\bis\s+", line, maxsplit=1)[-1] for line in lines[:2])
    return any(_unquoted(_trimmed(tail)) in wanted for tail in tails)


def _unquoted(text: str) -> str:
    return text.strip("\"'`* ")


def _says(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    """One of the expected phrases as whole words, undenied, and no rival beside it."""
    said = _folded(text)
    for answer in map(_folded, accepted):
        found = _phrase(answer).search(said)
        if not found:
            continue
        sentence = SENTENCE.split(said[: found.start()])[-1]
        if DENIAL.search(_clear(sentence[-DENIAL_CHARACTERS:], answer)):
            continue
        if any(_names(said, answer, rival) for rival in map(_folded, choices)):
            continue
        around = said[max(found.start() - 8, 0) : found.end() + 4]
        if GUESS.search(_clear(around, answer)):
            continue
        return True
    return False


def _names(said: str, answer: str, rival: str) -> bool:
    """Whether a rival is named; "red" beside "dark red" is counted only where it stands alone."""
    if rival == answer:
        return False
    longer = _phrase(answer).search(rival) is not None
    return _phrase(rival).search(said if longer else _clear(said, answer)) is not None


def _clear(text: str, answer: str) -> str:
    """`text` without the answer itself, which may be a word of denial."""
    return _phrase(answer).sub(" ", text)


def _folded(text: str) -> str:
    folded = text.casefold().replace("\u2019", "'").replace("-", " ")
    return " ".join(folded.strip(" .\"'`*").split())


def _phrase(answer: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")


def _last_number(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    """The last number of the answer's first paragraph; "19 or 20" is no answer."""
    paragraph = text.strip().split("\n\n")[0]
    found = [_number(match.group()) for match in NUMBER.finditer(paragraph)]
    wanted = [_number(answer) for answer in accepted[:1]]
    if None in wanted:
        raise UsageError(f"the grader number needs a number as answer, got {accepted[0]!r}")
    rivals = [_number(choice) for choice in choices]
    if rivals and sum(number in rivals for number in set(found)) > 1:
        return False
    guess = re.search(r"\d\s+or\s+[-+]?\d", paragraph)
    return bool(found) and found[-1] in wanted and not guess


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").strip())
    except InvalidOperation:
        return None


def _same_number(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    if _same_text(text, accepted, choices):
        return True
    number = _number(_trimmed(text))
    return number is not None and number == _number(accepted[0])


def _same_json(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    return any(_equal(_parsed(text), _expected(answer)) for answer in accepted)


def _like_json(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    """The first object or list in the text, with numbers and truth also as strings."""
    value = _first_json(text)
    return any(_plain(value) == _plain(_expected(answer)) for answer in accepted)


NOTHING = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOTHING


def _expected(answer: str) -> Any:
    value = _parsed(answer)
    if value is NOTHING:
        raise UsageError(f"the grader json needs JSON as answer, got {answer!r}")
    return value


def _first_json(text: str) -> Any:
    start = re.search(r"[\[{]", text)
    if start is None:
        return NOTHING
    try:
        return json.JSONDecoder().raw_decode(text, start.start())[0]
    except (ValueError, RecursionError):
        return NOTHING


def _equal(a: Any, b: Any) -> bool:
    """Equal in type and value, inside too: 1 is not true and not "1"; 1.0 is 1."""
    numbers = (int, float)
    if type(a) is not type(b) and not (type(a) in numbers and type(b) in numbers):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _plain(value: Any) -> Any:
    """A value as text, however it was typed."""
    if isinstance(value, dict):
        return {str(key).casefold(): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if value is NOTHING else str(value).casefold().strip()


def _matches(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    return any(_compiled(answer).fullmatch(text.strip()) for answer in accepted)


def _contains(text: str, accepted: Sequence[str], choices: Sequence[str]) -> bool:
    return any(_compiled(answer).search(text) for answer in accepted)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error


GRADERS: dict[str, tuple[Lenient, Lenient]] = {
    "exact": (_same_text, _loosely_same),
    "lenient": (_same_text, _says),
    "number": (_same_number, _last_number),
    "json": (_same_json, _like_json),
    "regex": (_matches, _contains),
}
