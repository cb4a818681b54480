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
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import prefill
from edgellm_export import reference
from edgellm_export.quantize.capture import open_graph
from edgellm_export.weights import Float32

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
    arch_checks.portable_decodes_from_its_cache(models(precision))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_int8_activations_change_little(models: Models, precision: str) -> None:
    arch_checks.int8_activations_change_little(models(precision))


@pytest.mark.parametrize("precision", ["exact", "int4"])
def test_a_bfloat16_folder_passes_its_self_check(tmp_path: Path, precision: str) -> None:
    assert not [
        line for line in arch_checks.is_published(tmp_path, PHI3, precision) if "rope" in line
    ]


# Well beyond the original window of 48.
LONG_IDS = np.random.default_rng(9).integers(3, 280, 60).tolist()
BOTH_SIDES = pytest.mark.parametrize("tokens", [47, 48, 49, 60])


def wanted(model: Built, tokens: int) -> Float32:
    return reference.forward(model.config, model.stored, LONG_IDS[:tokens])


@BOTH_SIDES
def test_long_rope_takes_its_factors_by_the_length_of_the_text(models: Models, tokens: int) -> None:
    model = models("long-fp32")
    found = arch_checks.one_pass(arch_checks.session(model), LONG_IDS[:tokens])
    arch_checks.assert_close(found, wanted(model, tokens))


def test_the_factors_differ(models: Models) -> None:
    model = models("long-fp32")
    assert np.abs(wanted(model, 49)[:48] - wanted(model, 48)).max() > 1e-2


def test_decoding_past_the_original_window_makes_the_cache_again(models: Models) -> None:
    """And back, when the text is cut, and forward once more."""
    model = models("long-fp32")
    opened = arch_checks.session(model)
    cache = KVCache(model.shape, 1)
    for tokens in range(1, 61):
        found = opened.forward([LONG_IDS[tokens - 1]], [0], cache)
        if tokens in (1, 47, 48, 49, 50, 60):
            arch_checks.assert_close(found, wanted(model, tokens)[-1:])
    assert cache.rope_offset == 48
    assert cache.keep_common(LONG_IDS[:20]) == 19
    found = opened.forward(LONG_IDS[19:20], [0], cache)
    arch_checks.assert_close(found, wanted(model, 20)[-1:])
    assert cache.rope_offset == 0
    found = opened.forward(LONG_IDS[20:], [39], cache)
    arch_checks.assert_close(found, wanted(model, 60)[-1:])


@BOTH_SIDES
@pytest.mark.parametrize("chunk", [1, 7, 48, 59])
def test_a_long_prompt_in_chunks_is_one_prompt(
    models: Models, monkeypatch: pytest.MonkeyPatch, tokens: int, chunk: int
) -> None:
    model = models("long-fp32")
    monkeypatch.setattr("edgellm.runtime.decode.CHUNK_TOKENS", chunk)
    monkeypatch.setattr("edgellm.runtime.session.TURNED_TOKENS", chunk)
    cache = KVCache(model.shape, tokens)
    found = prefill(arch_checks.session(model), cache, LONG_IDS[:tokens])
    arch_checks.assert_close(found[None], wanted(model, tokens)[-1:])


@BOTH_SIDES
def test_the_portable_graph_switches_too(models: Models, tokens: int) -> None:
    """A right-padded batch, whose longest row decides for all, as in transformers."""
    model = models("long-fp32")
    graph = open_graph(model.portable)
    empty = np.zeros((2, model.shape.num_key_value_heads, 0, model.shape.head_dim), np.float32)
    feed = {value.name: empty for value in graph.get_inputs()}
    ids = LONG_IDS[:tokens]
    feed["input_ids"] = np.array([ids, ids[:-5] + [0] * 5])
    feed["attention_mask"] = np.array([[1] * tokens, [1] * (tokens - 5) + [0] * 5])
    found = np.asarray(graph.run(["logits"], feed)[0])
    expected = wanted(model, tokens)
    arch_checks.assert_close(found[0], expected)
    arch_checks.assert_close(found[1, : tokens - 5], expected[: tokens - 5])


def test_long_rope_has_its_whole_context(tmp_path: Path) -> None:
    arch_checks.is_published(tmp_path, LONG_PHI3, "int8")
    shape = manifest.read(tmp_path / "bundle").shape
    assert (shape.context_length, shape.rope_switch) == (256, 48)


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
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}}, "long_factor must be"),
    ],
)
def test_a_rotary_setting_that_cannot_be_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises((Corrupt, Incompatible), match=said):
        arch_checks.built(tmp_path, {**LONG_PHI3, **change}, "fp32")
