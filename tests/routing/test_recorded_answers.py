"""The recorded answers of SmolLM2-135M: whole, graded as today's graders grade, and worth using."""

from __future__ import annotations

import json
from pathlib import Path

import generate
import items
import numpy as np
import pytest
import recording
from items import Item

from edgellm.routing.graders import grade

DATA = Path(__file__).parent / "data"
# A recording, and in which folder the items lie that it answers.
RECORDINGS = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("*.npz"))
LIMIT_BYTES = 6 << 20

recorded = pytest.mark.parametrize("name", RECORDINGS)


def items_of(name: str) -> list[Item]:
    return items.read((DATA / name).parent / "items.jsonl")


def test_the_exact_import_is_recorded() -> None:
    assert "exact.npz" in RECORDINGS


@recorded
def test_recorded_items_are_generated_ones(name: str) -> None:
    made = {item.id: item for item in generate.generate()}
    assert all(made[item.id] == item for item in items_of(name))


@recorded
def test_arrays_are_aligned_to_the_items(name: str) -> None:
    count = len(items_of(name))
    with np.load(DATA / name, allow_pickle=False) as found:
        for key in ("prompt_tokens", "finish", "strict", "lenient", *recording.HIDDEN):
            assert len(found[key]) == count, key
        offsets, tokens = found["offsets"], len(found["token_ids"])
        assert (len(offsets), offsets[0], offsets[-1]) == (count + 1, 0, tokens)
        assert (np.diff(offsets) >= 0).all()
        for key in ("logprob", "entropy", "margin"):
            assert len(found[key]) == tokens
            assert np.isfinite(found[key]).all()
        assert (found["entropy"] >= 0).all()
        assert (found["margin"] >= 0).all()
        assert (found["logprob"] <= 0.01).all()
        meta = json.loads(str(found["meta"][0]))
    assert meta["hidden_layer"] == 20
    assert len(meta["weights_sha256"]) == 64


@recorded
def test_grades_are_those_that_the_graders_give_today(name: str) -> None:
    with np.load(DATA / name) as file:
        found = {key: file[key] for key in ("text", "text_offsets", "strict", "lenient")}
    for i, item in enumerate(items_of(name)):
        verdict = grade(item.grader, recording.text_of(found, i), item.answer, item.choices)
        assert (verdict.strict, verdict.lenient) == (found["strict"][i], found["lenient"][i]), i


def of_test(name: str, key: str) -> dict[str, bool]:
    """`key` of the plain test items by id."""
    with np.load(DATA / name) as file:
        values = file[key].tolist()
    return {
        item.id: bool(value)
        for item, value in zip(items_of(name), values, strict=True)
        if item.split == "test"
    }


def test_the_model_is_sometimes_right_and_seldom_cut_off() -> None:
    lenient = list(of_test("exact.npz", "lenient").values())
    assert 0.35 < np.mean(lenient) < 0.65
    assert np.mean(list(of_test("exact.npz", "finish").values())) < 0.05


def test_rounding_to_4_bits_is_a_shift_and_shows_as_one() -> None:
    """The same questions, many other answers: what was fitted on one precision meets another."""
    exact, rounded = of_test("exact.npz", "lenient"), of_test("int4/int4.npz", "lenient")
    assert exact.keys() == rounded.keys()
    assert np.mean(list(rounded.values())) < np.mean(list(exact.values())) - 0.05


def test_all_of_it_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < LIMIT_BYTES
