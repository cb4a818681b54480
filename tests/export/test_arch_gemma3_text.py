"""The gemma3_text graphs against the numpy forward pass on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import arch_checks
import pytest
from arch_checks import Built
from tiny_archs import GEMMA3

Models = Callable[[str], Built]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The build of a precision, made once."""
    made: dict[str, Built] = {}

    def get(precision: str) -> Built:
        if precision not in made:
            made[precision] = arch_checks.built(tmp_path_factory.mktemp("m"), GEMMA3, precision)
        return made[precision]

    return get


EVERY = pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])


@EVERY
def test_the_graph_computes_the_forward_pass(models: Models, precision: str) -> None:
    arch_checks.equals_the_reference(models(precision))


@EVERY
def test_it_is_the_same_however_it_is_fed(
    models: Models, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch_checks.equals_itself_however_fed(models(precision), monkeypatch)


@EVERY
def test_the_portable_graph_equals_the_native_one(models: Models, precision: str) -> None:
    arch_checks.portable_equals_native(models(precision))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_int8_activations_change_little(models: Models, precision: str) -> None:
    arch_checks.int8_activations_change_little(models(precision))


@pytest.mark.parametrize("precision", ["exact", "int4"])
def test_a_bfloat16_folder_passes_its_self_check(tmp_path: Path, precision: str) -> None:
    arch_checks.is_published(tmp_path, GEMMA3, precision)
