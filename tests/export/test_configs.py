"""The small files say what other loaders do not guess; tests/targets runs those loaders."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_architectures as architectures
import tiny_models as tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import END_OF_TURN, TEMPLATE, TINY, make_bundle
from tokenizers import Tokenizer

from edgellm_export.configs import _tokenizer_json as portable_tokenizer

DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "exact": "q4"}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("precision", "dtype"), DTYPES.items())
def test_transformers_js_finds_graph_and_weights_without_being_told(
    tmp_path: Path, precision: str, dtype: str
) -> None:
    made = make_bundle(tiny.write_gguf(tmp_path / "m.gguf"), tmp_path / "out", precision)
    file = made.graphs["portable"].path.removeprefix("onnx/")
    settings = read(tmp_path / "out" / "config.json")["transformers.js_config"]
    assert settings == {"dtype": dtype, "use_external_data_format": {file: 1}}


def written(tmp_path: Path, settings: dict[str, Any], template: str | None = None) -> Any:
    """The tokenizer_config.json of a bundle whose source had `settings`."""
    source = tiny.write_folder(tmp_path / "source", TINY)
    (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template is not None:
        (source / "chat_template.jinja").write_text(template, encoding="utf-8")
    make_bundle(source, tmp_path / "out", "fp32")
    return read(tmp_path / "out" / "tokenizer_config.json")


def test_a_template_of_its_own_file_is_also_in_the_tokenizer_config(tmp_path: Path) -> None:
    assert written(tmp_path, {"eos_token": END_OF_TURN}, TEMPLATE)["chat_template"] == TEMPLATE


@pytest.mark.parametrize("named", [{}, {"tokenizer_class": "TokenizersBackend"}])
def test_a_tokenizer_class_is_one_that_every_loader_knows(
    tmp_path: Path, named: dict[str, str]
) -> None:
    config = written(tmp_path, {"eos_token": END_OF_TURN, **named})
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_known_tokenizer_class_stays(tmp_path: Path) -> None:
    config = written(tmp_path, {"eos_token": END_OF_TURN, "tokenizer_class": "GPT2Tokenizer"})
    assert config["tokenizer_class"] == "GPT2Tokenizer"


def test_digits_are_split_by_expressions_that_every_loader_reads_alike() -> None:
    steps = json.loads(portable_tokenizer(tiny.tokenizer().to_str()))["pre_tokenizer"]
    kinds = [step["type"] for step in steps["pretokenizers"]]
    assert kinds == ["Split", "Split", "ByteLevel"]
    assert steps["pretokenizers"][2]["use_regex"] is False


@cache
def spelled() -> Tokenizer:
    return Tokenizer.from_str(portable_tokenizer(tiny.tokenizer().to_str()))


AWKWARD = " \t\n0123456789½²Ⅷ'sdlvt.a"


@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(AWKWARD))))
def test_the_spelled_tokenizer_gives_the_same_ids(text: str) -> None:
    assert spelled().encode(text).ids == tiny.tokenizer().encode(text).ids


def test_another_tokenizer_stays_byte_for_byte() -> None:
    for pre_tokenizer in (None, {"type": "ByteLevel", "add_prefix_space": False}):
        text = json.dumps({"model": {}, "pre_tokenizer": pre_tokenizer}, indent=1)
        assert portable_tokenizer(text) == text


def test_a_window_that_is_null_stays_null(tmp_path: Path) -> None:
    """Left out, transformers' MistralConfig would put its 4096 there."""
    for said, kept in ((None, {"sliding_window": None}), (7, {"sliding_window": 7})):
        source = architectures.write_folder(tmp_path / f"m{said}", "mistral", sliding_window=said)
        tiny.make_bundle(source, tmp_path / f"out{said}", "fp32")
        found = json.loads((tmp_path / f"out{said}" / "config.json").read_text())
        assert {"sliding_window": found["sliding_window"]} == kept
        assert None not in {key: found[key] for key in found if key != "sliding_window"}.values()
