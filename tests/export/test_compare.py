"""The comparison behind the self-check finds what is wrong in whichever piece it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm_export import weights
from edgellm_export.checkpoint.mapped import map_file, release
from edgellm_export.compare import compare
from edgellm_export.data import Stored
from edgellm_export.quantize.rtn import quantize
from edgellm_export.recipe import Float, Integer, Keep, Treatment
from edgellm_export.store import Place
from edgellm_export.weights import Dense, Float32, Weight, to_float32

WEIGHT = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
INT4 = Integer(4, 32, True)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PIECE_VALUES", 7 * 64)


def dense(values: Float32) -> Dense:
    return Dense(values.shape, "float32", lambda: values)


def place(treatment: Treatment, added: float = 0.0) -> Place:
    stored = Stored("w", 0, np.dtype(np.float32), WEIGHT.shape)
    return Place(stored, 0, len(WEIGHT), treatment, added=added)


def test_equal_weights_do_not_differ() -> None:
    found = compare(dense(WEIGHT), dense(WEIGHT), place(Keep()))
    assert (found.spread(), found.relative_rms()) == (0, 0)


@pytest.mark.parametrize("row", [0, 20, 39])
def test_one_wrong_number_is_found_in_any_row(row: int) -> None:
    wrong = WEIGHT.copy()
    wrong[row, 3] += 1
    found = compare(dense(WEIGHT), dense(wrong), place(Keep()))
    assert found.spread() == pytest.approx(1 / (WEIGHT.max() - WEIGHT.min()), rel=1e-5)


@pytest.mark.parametrize("row", [0, 20, 39])
def test_an_undefined_number_is_found_in_any_row(row: int) -> None:
    wrong = WEIGHT.copy()
    wrong[row, 3] = np.nan
    found = compare(dense(WEIGHT), dense(wrong), place(Keep()))
    assert not found.spread() <= 1
    assert not found.relative_rms() <= 1


@pytest.mark.parametrize("source", [dense(WEIGHT), quantize(WEIGHT, Integer(8, 32, False))])
def test_rounding_is_measured_over_all_pieces(source: Weight) -> None:
    stored = quantize(WEIGHT, INT4)
    a, b = to_float32(source), to_float32(stored)
    expected = np.sqrt(((a - b) ** 2).sum() / (a**2).sum())
    found = compare(source, stored, place(INT4))
    assert found.relative_rms() == pytest.approx(expected, rel=1e-5)


def test_float16_is_compared_with_what_float16_can_hold() -> None:
    half = WEIGHT.astype(np.float16).astype(np.float32)
    found = compare(dense(WEIGHT), dense(half), place(Float("float16")))
    assert found.spread() == 0
    assert found.relative_rms() > 0


def test_what_was_added_is_expected_again() -> None:
    assert compare(dense(WEIGHT), dense(WEIGHT + 1), place(Keep(), added=1)).spread() == 0


def test_pages_given_back_have_the_same_bytes_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    data = map_file(path, 1, "a file")
    before = bytes(data)
    release(data, 5000, 90_000)
    release(data, 0, len(data))
    assert bytes(data) == before
