"""Tuning: what is tried by default, and which rows nobody should take."""

from __future__ import annotations

import pytest

from edgellm.bench.quality import Report
from edgellm.bench.tune import SPEED_NOISE, Candidate, Measured, decoding, defaults, dominated
from edgellm.errors import UsageError


def row(name: str, size: int, speed: float, kl: float) -> Measured:
    return Measured(name, "int4", size, speed, Report(10.0, kl, 2 * kl, 0.9, 100))


def test_a_row_beaten_in_everything_is_marked_and_a_trade_off_is_not() -> None:
    rows = [
        row("fp32", 500, 50, 0.0),
        row("int8", 130, 100, 0.005),
        row("bad", 140, 90, 0.02),
        row("int4", 80, 150, 0.1),
    ]
    assert dominated(rows) == {"bad": "int8"}


def test_speed_within_noise_decides_nothing() -> None:
    rows = [row("larger", 100, 100, 0.1), row("smaller", 90, 100 * (1 - SPEED_NOISE / 2), 0.1)]
    assert dominated(rows) == {"larger": "smaller"}
    rows = [row("larger", 100, 100, 0.1), row("smaller", 90, 100 * (1 - SPEED_NOISE * 2), 0.1)]
    assert dominated(rows) == {}


def test_equal_rows_do_not_beat_each_other() -> None:
    assert dominated([row("a", 100, 100, 0.1), row("b", 100, 100, 0.1)]) == {}


def test_the_default_sizes_lie_between_4_and_8_bits_a_weight() -> None:
    tried = defaults(134_000_000)
    sizes = [candidate.target_mb for candidate in tried if candidate.target_mb]
    assert len(sizes) == 2
    assert all(134 / 2 < size < 134 for size in sizes)
    names = [candidate.name for candidate in tried]
    assert len(set(names)) == len(names)
    assert {"int8", "int4", "int4-calibrated"} < set(names)


def test_a_model_too_small_for_a_size_is_tried_without() -> None:
    assert all(candidate.target_mb is None for candidate in defaults(1000))


def test_names_fit_a_folder() -> None:
    assert Candidate(target_mb=86.0).name == "86mb"
    assert Candidate(target_mb=85.5).name == "85.5mb"


def test_decoding_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="1 or more, got 0"):
        decoding(0, 5)
