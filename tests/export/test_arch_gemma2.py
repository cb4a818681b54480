"""The gemma2 graphs against the numpy forward pass on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import arch_checks
import numpy as np
import pytest
from arch_checks import Built
from tiny_archs import GEMMA2, tensors

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.weights import to_float32

Models = Callable[[str], Built]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The build of a precision, made once."""
    made: dict[str, Built] = {}

    def get(precision: str) -> Built:
        if precision not in made:
            made[precision] = arch_checks.built(tmp_path_factory.mktemp("m"), GEMMA2, precision)
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
    arch_checks.is_published(tmp_path, GEMMA2, precision)


def test_layer_types_and_missing_caps_are_followed(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = {**GEMMA2, "layer_types": kinds, **caps, "tie_word_embeddings": False}
    model = arch_checks.built(tmp_path, config, "fp32")
    arch_checks.equals_the_reference(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_activation", "silu"),
        ("attention_bias", True),
        ("use_bidirectional_attention", True),
    ],
)
def test_an_unknown_variant_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    arch_checks.is_refused(tmp_path, GEMMA2, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sliding_window", -1),
        ("sliding_window", "8"),
        ("query_pre_attn_scalar", 0),
        ("attn_logit_softcapping", "high"),
        ("final_logit_softcapping", -30.0),
        ("layer_types", ["full_attention"]),
        ("layer_types", "sliding_attention"),
        ("rms_norm_eps", None),
    ],
)
def test_a_damaged_config_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(Corrupt, match=f"{key} must"):
        arch_checks.built(tmp_path, {**GEMMA2, key: value}, "fp32")


def test_an_unknown_kind_of_layer_is_refused_by_name(tmp_path: Path) -> None:
    config = {**GEMMA2, "layer_types": ["full_attention", "chunked_attention", "full_attention"]}
    with pytest.raises(Incompatible, match="chunked_attention"):
        arch_checks.built(tmp_path, config, "fp32")


def test_the_norms_are_stored_with_the_one_and_read_back_without(tmp_path: Path) -> None:
    name = "model.layers.1.pre_feedforward_layernorm.weight"
    model = arch_checks.built(tmp_path, GEMMA2, "fp32")
    wanted = tensors(GEMMA2)[name]
    assert np.array_equal(to_float32(model.stored.weight(name)), wanted + 1)
    assert np.abs(model.stored(name) - wanted).max() < 1e-6
