from __future__ import annotations

import pytest

from edgellm.routing.validators import arithmetic, grounded, quoted, well_formed_json


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("What is 17 + 25?", "17 + 25 is 42.", 1),
        ("What is 17 + 25?", "The answer is 43", -1),
        ("Compute 12 minus 30", "-18", 1),
        ("What is 1.5 x 2?", "3.0", 1),
        ("First 1 + 1 is 2. Now 3 times 4?", "12", 1),
        ("What is 900 plus 400?", "It is 1,300.", 1),
        ("Who wrote Hamlet?", "Shakespeare, in 1600", 0),
        ("What is 2 + 2?", "four", 0),
    ],
)
def test_sums_are_computed_again(prompt: str, answer: str, expected: int) -> None:
    assert arithmetic(prompt, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [('{"a": 1}', 1), ("Here: [1, 2] done", 1), ('{"a": ', -1), ("a is 1", -1), ("[" * 9000, -1)],
)
def test_json_must_parse_when_it_was_asked_for(answer: str, expected: int) -> None:
    assert well_formed_json("Answer in JSON.", answer) == expected
    assert well_formed_json("Answer in prose.", answer) == 0


def test_copied_text_must_be_in_the_answer() -> None:
    prompt = 'Repeat exactly: "the red house"'
    assert quoted(prompt, "Sure: the red house") == 1
    assert quoted(prompt, "the read house") == -1
    assert quoted('He said "the red house". Why?', "no idea") == 0


def test_grounding_is_the_share_of_words_that_the_prompt_has() -> None:
    assert grounded("Anna lives in Lisbon since 1990", "Lisbon, 1990") == 1
    assert grounded("Anna lives in Lisbon", "Madrid") == -1
    assert grounded("Anna", "ok") == 0
