"""The qwen3_moe graphs against the numpy forward pass on the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import arch_checks
import numpy as np
import pytest
import tiny_models as tiny
from arch_checks import Built
from tiny_archs import QWEN3_MOE, tensors, write

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.data import Stored
from edgellm_export.experts import Experts
from edgellm_export.linear import Matrix
from edgellm_export.recipe import Integer, Recipe

Models = Callable[[str], Built]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The build of a precision, made once."""
    made: dict[str, Built] = {}

    def get(precision: str) -> Built:
        if precision not in made:
            made[precision] = arch_checks.built(tmp_path_factory.mktemp("m"), QWEN3_MOE, precision)
        return made[precision]

    return get


EVERY = pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])


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
    arch_checks.is_published(tmp_path, QWEN3_MOE, precision)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_weights_of_experts_that_do_not_sum_to_one(tmp_path: Path, precision: str) -> None:
    model = arch_checks.built(tmp_path, {**QWEN3_MOE, "norm_topk_prob": False}, precision)
    arch_checks.equals_the_reference(model)
    arch_checks.portable_equals_native(model)


def test_a_window_over_all_layers(tmp_path: Path) -> None:
    model = arch_checks.built(tmp_path, {**QWEN3_MOE, "use_sliding_window": True}, "fp32")
    arch_checks.equals_the_reference(model)


def test_asymmetric_experts_of_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = Integer(8, 32, True)
    monkeypatch.setattr(tiny, "recipe", lambda name: Recipe(name, scheme, scheme, "_mine"))
    model = arch_checks.built(tmp_path, QWEN3_MOE, "mine")
    arch_checks.equals_the_reference(model)
    arch_checks.int8_activations_change_little(model)


def test_experts_of_two_bits_are_refused_with_a_precision_that_works(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=r"experts of 2 bits .* --precision int4"):
        arch_checks.built(tmp_path, QWEN3_MOE, "int2")


def test_every_expert_can_be_read_back(models: Models) -> None:
    wanted = tensors(QWEN3_MOE)
    for name, values in wanted.items():
        assert np.array_equal(models("fp32").stored(name), values), name
    assert models("fp32").shape.parameters == sum(values.size for values in wanted.values())


def test_routers_are_not_rounded(models: Models) -> None:
    name = "model.layers.2.mlp.gate.weight"
    assert np.array_equal(models("int4").stored(name), tensors(QWEN3_MOE)[name])


def test_genai_knows_it_by_the_name_of_its_dense_brother(tmp_path: Path) -> None:
    arch_checks.is_published(tmp_path, QWEN3_MOE, "int8")
    genai = json.loads((tmp_path / "bundle" / "genai_config.json").read_text())
    assert genai["model"]["type"] == "qwen3"


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("attention_bias", True)])
def test_an_unknown_variant_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    arch_checks.is_refused(tmp_path, QWEN3_MOE, key, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_experts": 9}, r"mlp\.gate\.weight.* \(9, 128\)"),
        ({"num_experts": 0}, "num_experts must"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, there are 8"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok must"),
        ({"moe_intermediate_size": 32}, r"experts\.0\..*promises"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step must"),
        ({"mlp_only_layers": []}, r"layers\.1\.mlp\.gate"),
    ],
)
def test_a_config_that_lies_about_experts_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    source = write(tmp_path / "source", QWEN3_MOE)
    (source / "config.json").write_text(json.dumps({**QWEN3_MOE, **change}))
    with pytest.raises((Corrupt, Incompatible), match=said):
        tiny.build(open_checkpoint(source), "fp32", tmp_path / "out")


def test_experts_of_unlike_blocks_are_refused_with_what_to_choose() -> None:
    def matrix(block_size: int) -> Matrix:
        place = Stored("x", 0, np.dtype(np.uint8), (1,))
        return Matrix((8, 64), place, 4, block_size, place)

    with pytest.raises(Incompatible, match=r"64 and 32.*--precision"):
        Experts(matrix(32), matrix(64), matrix(32), 2, True)
