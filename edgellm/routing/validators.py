"""Checks that need no model: does the answer contradict what can be computed from the prompt?

Each takes the last user turn and the answer, and returns 1 (checked and right), -1 (checked and
wrong) or 0 (nothing to check). They are signals among others, weighed by calibration, so that a
check that misreads prompts loses its say.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

NUMBER = r"-?\d+(?:\.\d+)?"
OPERATIONS: Mapping[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "plus": operator.add, "-": operator.sub, "minus": operator.sub,
    "*": operator.mul, "x": operator.mul, "times": operator.mul, "×": operator.mul,
}  # fmt: skip
_SIGNS = "|".join(re.escape(sign) for sign in OPERATIONS)
_SUM = re.compile(rf"(?<![\w.])({NUMBER})\s*({_SIGNS})\s*({NUMBER})(?![\w]|\.\d)", re.IGNORECASE)
_NUMBERS = re.compile(NUMBER)
# Longer texts are not looked at: a check must stay below a millisecond.
LIMIT_CHARACTERS = 20_000


def arithmetic(prompt: str, answer: str) -> float:
    """Whether the last sum of two numbers in the prompt is the last number of the answer."""
    sums = _SUM.findall(prompt[-LIMIT_CHARACTERS:])
    numbers = _NUMBERS.findall(answer.replace(",", "")[-LIMIT_CHARACTERS:])
    if not sums or not numbers:
        return 0.0
    left, sign, right = sums[-1]
    expected = OPERATIONS[sign.lower()](Fraction(left), Fraction(right))
    return 1.0 if Fraction(numbers[-1]) == expected else -1.0


def well_formed_json(prompt: str, answer: str) -> float:
    """Whether an answer that should be JSON parses, when the prompt speaks of JSON."""
    if "json" not in prompt.lower():
        return 0.0
    start = min((at for at in (answer.find("{"), answer.find("[")) if at >= 0), default=-1)
    if start < 0:
        return -1.0
    try:
        json.JSONDecoder().raw_decode(answer[start : start + LIMIT_CHARACTERS])
    except (ValueError, RecursionError):
        return -1.0
    return 1.0


def quoted(prompt: str, answer: str) -> float:
    """Whether the answer has the quoted text of a prompt that asks to copy or repeat it."""
    if not re.search(r"\b(copy|repeat|echo|verbatim|exactly)\b", prompt, re.IGNORECASE):
        return 0.0
    found = re.findall(r'["“]([^"“”]{3,400})["”]', prompt[-LIMIT_CHARACTERS:])
    if not found:
        return 0.0
    return 1.0 if found[-1] in answer else -1.0


def grounded(prompt: str, answer: str) -> float:
    """How much of the answer's longer words and numbers the prompt has, from -1 to 1."""
    said = set(re.findall(r"[^\W_]{4,}|\d+", answer.lower()[-LIMIT_CHARACTERS:]))
    given = set(re.findall(r"[^\W_]{4,}|\d+", prompt.lower()[-LIMIT_CHARACTERS:]))
    return 2 * len(said & given) / len(said) - 1 if said else 0.0


VALIDATORS: Mapping[str, Callable[[str, str], float]] = {
    "arithmetic": arithmetic,
    "json": well_formed_json,
    "quoted": quoted,
    "grounded": grounded,
}
