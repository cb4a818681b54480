"""Graders: what counts as right, strictly and leniently, and what must never count."""

from __future__ import annotations

import pytest

from edgellm.errors import UsageError
from edgellm.routing.graders import GRADERS, Grade, grade

STRICT, LENIENT, WRONG = Grade(True, True), Grade(False, True), Grade(False, False)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Paris", STRICT),
        ("Paris.\n", STRICT),
        ("The capital is Paris.", LENIENT),
        ("  paris", LENIENT),
        ('"Paris"', LENIENT),
        ("It is Paris, not Lyon.", LENIENT),
        ("Not in 1990. Today it is Paris.", LENIENT),
        ("It is not Paris.", WRONG),
        ("It isn\u2019t Paris", WRONG),
        ("Paris or London", WRONG),
        ("London or Paris", WRONG),
        ("either Paris", WRONG),
        ("Parisian", WRONG),
        ("London", WRONG),
        ("", WRONG),
    ],
)
def test_a_phrase_is_found_but_neither_denied_nor_guessed(text: str, verdict: Grade) -> None:
    assert grade("lenient", text, ["Paris"]) == verdict


def test_naming_several_candidates_is_no_answer() -> None:
    choices = ["red", "dark red", "blue"]
    assert grade("lenient", "Her coat is red.", ["red"], choices) == LENIENT
    assert grade("lenient", "red blue", ["red"], choices) == WRONG
    assert grade("lenient", "It is dark red.", ["red"], choices) == WRONG
    assert grade("lenient", "It is dark red.", ["dark red"], choices) == LENIENT


def test_the_answer_may_be_a_word_of_denial_itself() -> None:
    assert grade("lenient", "No, it is a tool.", ["No"], ["Yes", "No"]) == LENIENT
    assert grade("lenient", "Yes", ["No"], ["Yes", "No"]) == WRONG


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("19", STRICT),
        ("19.", STRICT),
        ("19.0", STRICT),
        ("12 + 7 = 19", LENIENT),
        ("12 plus 7 is 19 apples.", LENIENT),
        ("+19", STRICT),
        ("19 or 20", WRONG),
        ("19, no: 20", WRONG),
        ("119", WRONG),
        ("1.19", WRONG),
        ("-19", WRONG),
        ("nineteen", WRONG),
    ],
)
def test_a_number_is_the_last_one_of_the_answer(text: str, verdict: Grade) -> None:
    assert grade("number", text, ["19"]) == verdict


def test_numbers_may_have_thousands_and_decimals() -> None:
    assert grade("number", "5 km = 5,000 m", ["5000"]) == LENIENT
    assert grade("number", "0.50", ["0.5"]) == STRICT
    assert grade("number", "3 or more: 3 and 8", ["8"], ["3", "8"]) == WRONG
    assert grade("number", "19\n\nNow 20", ["19"]) == LENIENT


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"age": 31, "ok": true}', STRICT),
        ('{"ok": true, "age": 31.0}', STRICT),
        ('Here: {"age": 31, "ok": true} Done.', LENIENT),
        ('```json\n{"age": "31", "ok": "True"}\n```', LENIENT),
        ('{"age": 31, "ok": 1}', WRONG),
        ('{"age": 31}', WRONG),
        ('{"age": 31, "ok": true, "more": 1}', WRONG),
        ('{"age": 31, "ok": tru', WRONG),
        ("[" * 100_000, WRONG),
        ("", WRONG),
    ],
)
def test_json_is_compared_by_value_and_strictly_by_type(text: str, verdict: Grade) -> None:
    assert grade("json", text, ['{"age": 31, "ok": true}']) == verdict


def test_exact_text_may_be_framed_but_case_counts() -> None:
    assert grade("exact", "a-b", ["a-b"]) == STRICT
    assert grade("exact", "The code is a-b.", ["a-b"]) == LENIENT
    assert grade("exact", 'Code: "a-b"', ["a-b"]) == LENIENT
    assert grade("exact", "A-b", ["a-b"]) == WRONG
    assert grade("exact", "a-b and more", ["a-b"]) == WRONG


def test_a_pattern_fits_all_of_a_strict_answer_and_part_of_a_lenient_one() -> None:
    assert grade("regex", " 2024-05-06 ", [r"\d{4}-\d\d-\d\d"]) == STRICT
    assert grade("regex", "on 2024-05-06", [r"\d{4}-\d\d-\d\d"]) == LENIENT
    assert grade("regex", "in May", [r"\d{4}-\d\d-\d\d"]) == WRONG


@pytest.mark.parametrize("grader", GRADERS)
def test_a_strict_verdict_is_always_lenient_too(grader: str) -> None:
    right = {"json": '["a"]', "number": "7"}.get(grader, "seven")
    assert grade(grader, right, [right]) == STRICT


@pytest.mark.parametrize(
    ("grader", "accepted", "line"),
    [
        ("exakt", ["a"], "unknown grader 'exakt'; there are: exact, lenient"),
        ("exact", [], "at least one accepted answer"),
        ("number", ["nine"], "needs a number as answer, got 'nine'"),
        ("json", ["{"], "needs JSON as answer"),
        ("regex", ["("], "is no regular expression"),
    ],
)
def test_what_a_grader_cannot_use_is_wrong_usage(
    grader: str, accepted: list[str], line: str
) -> None:
    with pytest.raises(UsageError, match=line.replace("(", r"\(")):
        grade(grader, "text", accepted)
