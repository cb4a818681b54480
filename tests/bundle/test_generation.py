from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgellm.bundle import generation
from edgellm.errors import Corrupt
from edgellm.stream import Sampling


def written(folder: Path, content: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_a_bundle_without_the_file_has_neutral_defaults(tmp_path: Path) -> None:
    assert generation.read(tmp_path) == generation.GenerationDefaults()


@pytest.mark.parametrize(
    ("value", "ids"), [(2, {2}), ([2, 0], {0, 2}), ([], set()), (None, set()), ([7, 7], {7})]
)
def test_ends_of_answers_are_an_id_or_a_list(tmp_path: Path, value: Any, ids: set[int]) -> None:
    found = generation.read(written(tmp_path, {"eos_token_id": value}))
    assert found.eos_token_ids == ids


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({}, Sampling()),
        ({"do_sample": True}, Sampling(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05},
            Sampling(temperature=0.6, top_p=0.9, top_k=20, min_p=0.05),
        ),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, Sampling()),
        ({"temperature": 0.7}, Sampling(temperature=0.7)),
        ({"temperature": None, "top_k": None}, Sampling()),
        ({"temperature": 1}, Sampling(temperature=1.0)),
    ],
)
def test_sampling_is_what_the_publisher_wrote(
    tmp_path: Path, config: dict[str, Any], sampling: Sampling
) -> None:
    assert generation.read(written(tmp_path, config)).sampling == sampling


def test_a_repetition_penalty_counts_in_greedy_decoding_over_the_whole_context() -> None:
    sampling = generation.parse({"do_sample": False, "repetition_penalty": 1.1}).sampling
    assert (sampling.temperature, sampling.repeat_penalty, sampling.penalty_window) == (0, 1.1, 0)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ([], "must be an object"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [2, -1]}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"eos_token_id": [2.0]}, "eos_token_id"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 7}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0}, "repeat_penalty"),
        ({"repetition_penalty": {}}, "repetition_penalty"),
    ],
)
def test_a_file_that_lies_is_corrupt_and_says_where(
    tmp_path: Path, config: Any, named: str
) -> None:
    with pytest.raises(Corrupt, match=named) as caught:
        generation.read(written(tmp_path, config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"top_k": 1e999}'])
def test_a_damaged_file_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(Corrupt):
        generation.read(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "generation_config.json").open("wb") as file:
        file.truncate(generation.FILE_LIMIT_BYTES + 1)
    with pytest.raises(Corrupt, match="larger than"):
        generation.read(tmp_path)
