"""The phi3 graphs against the numpy forward pass on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import arch_checks
import numpy as np
import pytest
from arch_checks import Built
from tiny_archs import LONG_PHI3, PHI3

from edgellm.bundle import manifest
from edgellm.errors import Corrupt, Incompatible

Models = Callable[[str], Built]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The build of a precision, made once."""
    made: dict[str, Built] = {}

    def get(name: str) -> Built:
        if name not in made:
            long, _, precision = name.rpartition("-")
            config = LONG_PHI3 if long else PHI3
            made[name] = arch_checks.built(tmp_path_factory.mktemp("m"), config, precision)
        return made[name]

    return get


EVERY = pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "long-fp32", "long-int4"])


@EVERY
def test_the_graph_computes_the_forward_pass(models: Models, precision: str) -> None:
    arch_checks.equals_the_reference(models(precision))


@EVERY
def test_it_is_the_same_however_it_is_fed(
    models: Models, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch_checks.equals_itself_however_fed(models(precision), monkeypatch)


def test_it_shows_the_hidden_states_of_its_probe_layer(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch_checks.shows_the_residual_of_the_probe_layer(models("fp32"), monkeypatch)


@EVERY
def test_the_portable_graph_equals_the_native_one(models: Models, precision: str) -> None:
    arch_checks.portable_equals_native(models(precision))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_int8_activations_change_little(models: Models, precision: str) -> None:
    arch_checks.int8_activations_change_little(models(precision))


@pytest.mark.parametrize("precision", ["exact", "int4"])
def test_a_bfloat16_folder_passes_its_self_check(tmp_path: Path, precision: str) -> None:
    assert not [
        line for line in arch_checks.is_published(tmp_path, PHI3, precision) if "rope" in line
    ]


def test_long_rope_keeps_the_context_inside_the_original_window(tmp_path: Path) -> None:
    said = arch_checks.is_published(tmp_path, LONG_PHI3, "int8")
    assert any("the context is 48 tokens of 256" in line for line in said)
    assert manifest.read(tmp_path / "bundle").shape.context_length == 48


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_all_names_of_long_rope_mean_the_same(models: Models, tmp_path: Path, kind: str) -> None:
    scaling = {**LONG_PHI3["rope_scaling"], "type": kind}
    model = arch_checks.built(tmp_path, {**LONG_PHI3, "rope_scaling": scaling}, "fp32")
    found = arch_checks.one_pass(arch_checks.session(model))
    assert np.array_equal(found, arch_checks.one_pass(arch_checks.session(models("long-fp32"))))


def test_an_attention_factor_of_its_own_is_taken(tmp_path: Path) -> None:
    scaling = {**LONG_PHI3["rope_scaling"], "attention_factor": 1.5}
    model = arch_checks.built(tmp_path, {**LONG_PHI3, "rope_scaling": scaling}, "fp32")
    arch_checks.equals_the_reference(model)


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("attention_bias", True)])
def test_an_unknown_variant_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    arch_checks.is_refused(tmp_path, PHI3, key, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"partial_rotary_factor": 0.0}, "partial_rotary_factor"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.25}, "short_factor must be 4 numbers, it has 8"),
        ({"original_max_position_embeddings": -1}, "original_max_position_embeddings"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor must be 8 numbers, it has 0"),
        ({"rope_scaling": {"type": "longrope", "short_factor": ["a"] * 8}}, "short_factor"),
    ],
)
def test_a_rotary_setting_that_cannot_be_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises((Corrupt, Incompatible), match=said):
        arch_checks.built(tmp_path, {**LONG_PHI3, **change}, "fp32")
