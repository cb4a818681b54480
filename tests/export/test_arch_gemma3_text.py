"""The gemma3_text graphs against the numpy forward pass on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import arch_checks
import numpy as np
import pytest
from arch_checks import Built
from tiny_archs import GEMMA3

from edgellm.errors import Incompatible
from edgellm_export import fields

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


def test_it_shows_the_hidden_states_of_its_probe_layer(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch_checks.shows_the_residual_of_the_probe_layer(models("fp32"), monkeypatch)


@EVERY
def test_the_portable_graph_equals_the_native_one(models: Models, precision: str) -> None:
    arch_checks.portable_equals_native(models(precision))
    arch_checks.portable_decodes_from_its_cache(models(precision))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_int8_activations_change_little(models: Models, precision: str) -> None:
    arch_checks.int8_activations_change_little(models(precision))


@pytest.mark.parametrize("precision", ["exact", "int4"])
def test_a_bfloat16_folder_passes_its_self_check(tmp_path: Path, precision: str) -> None:
    arch_checks.is_published(tmp_path, GEMMA3, precision)


BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


def without_rope(**more: object) -> dict[str, object]:
    return {key: value for key, value in GEMMA3.items() if "rope" not in key} | more


def test_both_ways_to_write_two_rotary_bases_are_the_same_model(
    models: Models, tmp_path: Path
) -> None:
    new = without_rope(rope_parameters=BY_LAYER)
    del new["sliding_window_pattern"]
    new["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    found = arch_checks.one_pass(arch_checks.session(arch_checks.built(tmp_path, new, "fp32")))
    assert np.array_equal(found, arch_checks.one_pass(arch_checks.session(models("fp32"))))


def test_bases_that_are_not_said_are_hugging_faces(tmp_path: Path) -> None:
    silent = arch_checks.built(tmp_path / "silent", without_rope(), "fp32")
    bases = {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}
    said = arch_checks.built(tmp_path / "said", without_rope(**bases), "fp32")
    found, wanted = (arch_checks.one_pass(arch_checks.session(m)) for m in (silent, said))
    assert np.array_equal(found, wanted)


def test_scaled_local_layers_are_refused(tmp_path: Path) -> None:
    scaled = {**BY_LAYER, "sliding_attention": {"rope_type": "yarn", "factor": 2.0}}
    with pytest.raises(Incompatible, match="local layers"):
        arch_checks.built(tmp_path, without_rope(rope_parameters=scaled), "fp32")


def test_the_whole_model_is_scaled_as_its_type_rounds(tmp_path: Path) -> None:
    """sqrt(128) is 11.31 in float32 and 11.3125 in bfloat16."""
    model = arch_checks.built(tmp_path, {**GEMMA3, "dtype": "bfloat16"}, "fp32")
    arch_checks.equals_the_reference(model)
    assert fields.embedding_scale(model.config) == 11.3125


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_activation", "silu"),
        ("attention_bias", True),
        ("use_bidirectional_attention", True),
        ("attn_logit_softcapping", 50.0),
    ],
)
def test_an_unknown_variant_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    arch_checks.is_refused(tmp_path, GEMMA3, key, value)
