"""The evaluation set: the same prompts from the same seed, split by wording, without leaks."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import generate
import items
import pytest
from items import Item

from edgellm.routing.graders import Grade, grade

SHIFTS = set(generate.SHIFTS)


@pytest.fixture(scope="module")
def made() -> list[Item]:
    return generate.generate()


def digest(made: list[Item]) -> str:
    return hashlib.sha256("".join(map(items.to_line, made)).encode()).hexdigest()


def test_the_prompts_never_change_unnoticed(made: list[Item]) -> None:
    """After a change on purpose: record again, and put the new value here."""
    assert digest(made) == "7fee0f9be9258f2f0e279b31cbee6735f5cbc346b9a1bd0459d73540902bd750"
    assert digest(generate.generate(seed=21)) != digest(made)


def test_every_family_has_five_levels_and_every_wording_one_split(made: list[Item]) -> None:
    plain = [item for item in made if item.split not in SHIFTS]
    splits = defaultdict(set)
    for item in plain:
        splits[item.template].add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    families = {item.family for item in plain}
    assert len(families) >= 18
    assert {(item.family, item.level) for item in plain} == {
        (family, level) for family in families for level in range(1, 6)
    }
    shares = Counter(item.split for item in plain)
    assert shares["calibration"] / len(plain) == pytest.approx(0.4, abs=0.01)
    assert shares["test"] / len(plain) == pytest.approx(0.4, abs=0.01)


def test_no_question_is_in_two_splits_and_no_example_is_the_question(made: list[Item]) -> None:
    splits = defaultdict(set)
    for item in made:
        question = item.prompt[-1]["content"]
        assert question not in [turn["content"] for turn in item.prompt[:-1]]
        if item.split not in SHIFTS:
            splits[question].add(item.split)
    assert all(len(found) == 1 for found in splits.values())


def test_ids_are_unique_and_prompts_end_with_a_question(made: list[Item]) -> None:
    assert len({item.id for item in made}) == len(made)
    for item in made:
        assert [turn["role"] for turn in item.prompt[::2]].count("user") == len(item.prompt[::2])
        assert len(item.prompt) % 2 == 1


def test_the_prompt_holds_neither_level_nor_family_nor_split(made: list[Item]) -> None:
    """What a feature may be made of is the prompt alone: it must not name its label."""
    for item in made:
        said = " ".join(turn["content"] for turn in item.prompt)
        assert item.id not in said
        assert item.template not in said
        assert "level" not in said.casefold().split()


def test_expected_answers_pass_their_own_grader(made: list[Item]) -> None:
    for item in made:
        if item.grader == "regex":
            continue
        verdict = grade(item.grader, item.answer[0], item.answer, item.choices)
        assert verdict == Grade(True, True), item.id


def test_an_answer_to_another_item_fails(made: list[Item]) -> None:
    """A grader that accepts everything would look like a good model."""
    wrong = 0
    for item, other in zip(made, made[600:] + made[:600], strict=True):
        if item.grader in ("regex", "json") or other.answer[0] in item.answer:
            continue
        wrong += grade(item.grader, other.answer[0], item.answer, item.choices).lenient
    assert wrong < 0.01 * len(made)


def test_shifted_items_are_test_items_with_another_question(made: list[Item]) -> None:
    by_id = {item.id: item for item in made}
    shifted = [item for item in made if item.split in SHIFTS]
    assert Counter(item.split for item in shifted).keys() == SHIFTS
    same = 0
    for item in shifted:
        source = by_id[item.id.partition("-shift-")[0]]
        assert source.split == "test"
        assert (source.answer, source.prompt[:-1]) == (item.answer, item.prompt[:-1])
        same += source.prompt == item.prompt
    # A typing error may hit no word of a short wording.
    assert same < 0.1 * len(shifted)
