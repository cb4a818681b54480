from __future__ import annotations

import dataclasses

import pytest

from edgellm.bundle.manifest import Shape
from edgellm.device import memory
from edgellm.device.memory import Running
from edgellm.errors import Incompatible, MemoryShort, UsageError

SMOLLM2 = Shape(
    architecture="llama",
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    hidden_size=576,
    vocab_size=49_152,
    context_length=8192,
    parameters=134_515_008,
)
HALF_BILLION = Shape(
    architecture="llama",
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    hidden_size=896,
    vocab_size=151_936,
    context_length=32_768,
    parameters=494_000_000,
)
# int4 layers and an int8 head, blocks of 32, float32 scales: what the measured graphs held.
SMOLLM2_WEIGHTS = memory.WeightBytes(
    codes=53_084_160 + 28_311_552, blocks=4_202_496, floats=19_000_000, dense=0, largest=28_311_552
)
HALF_BILLION_WEIGHTS = memory.WeightBytes(
    codes=178_900_000 + 136_134_656,
    blocks=15_434_500,
    floats=64_000_000,
    dense=0,
    largest=136_134_656,
)


def tokenizer_mb(shape: Shape) -> float:
    """The measuring script had no tokenizer and imported 12 MB less than a whole process."""
    return memory.TOKENIZER_BYTES_PER_ENTRY * shape.vocab_size / 1e6 + 12


@pytest.mark.parametrize(
    ("shape", "weights", "context", "chunk", "measured_mb"),
    [
        # VmHWM after prefilling the whole context in chunks, ONNX Runtime 1.31.1, 2 cores.
        (SMOLLM2, SMOLLM2_WEIGHTS, 512, 32, 223),
        (SMOLLM2, SMOLLM2_WEIGHTS, 512, 256, 249),
        (SMOLLM2, SMOLLM2_WEIGHTS, 512, 512, 255),
        (SMOLLM2, SMOLLM2_WEIGHTS, 8000, 256, 603),
        (HALF_BILLION, HALF_BILLION_WEIGHTS, 512, 256, 713),
    ],
)
def test_the_plan_is_within_15_percent_of_what_was_measured(
    shape: Shape, weights: memory.WeightBytes, context: int, chunk: int, measured_mb: float
) -> None:
    found = memory.plan(shape, weights, context, Running(chunk), budget_mb=10_000)
    assert found.total_mb - tokenizer_mb(shape) == pytest.approx(measured_mb, rel=0.15)


def test_the_cache_is_two_tensors_a_layer() -> None:
    assert memory.kv_bytes_per_token(SMOLLM2) == 2 * 30 * 3 * 64 * 4
    half = dataclasses.replace(SMOLLM2, kv_dtype="float16")
    assert memory.kv_bytes_per_token(half) == 30 * 3 * 64 * 4


def test_an_unknown_cache_type_is_incompatible() -> None:
    with pytest.raises(Incompatible, match="unknown cache type 'float7'"):
        memory.kv_bytes_per_token(dataclasses.replace(SMOLLM2, kv_dtype="float7"))


def test_the_parts_add_up() -> None:
    found = memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 1024, Running(256), budget_mb=10_000)
    parts = found.weights_mb + found.kv_mb + found.workspace_mb
    assert found.total_mb == pytest.approx(parts)
    assert found.kv_mb == pytest.approx(1024 * 46_080 / 1e6)
    memory.check(found)


@pytest.mark.parametrize("shape", [SMOLLM2, HALF_BILLION])
@pytest.mark.parametrize("chunk", [1, 64, 256, 1024])
@pytest.mark.parametrize("budget_mb", [0, 250, 300, 400, 800, 900, 1000, 1500])
def test_the_largest_context_fits_and_the_next_does_not(
    shape: Shape, chunk: int, budget_mb: float
) -> None:
    weights = SMOLLM2_WEIGHTS if shape is SMOLLM2 else HALF_BILLION_WEIGHTS
    largest = memory.largest_context(shape, weights, Running(chunk), budget_mb)
    assert 0 <= largest <= shape.context_length
    if largest:
        assert memory.plan(shape, weights, largest, Running(chunk), budget_mb).fits
    if largest < shape.context_length:
        assert not memory.plan(shape, weights, largest + 1, Running(chunk), budget_mb).fits


def test_a_context_that_does_not_fit_is_refused_with_the_one_that_does() -> None:
    found = memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 8192, Running(256), budget_mb=400)
    largest = found.largest_context_tokens
    assert 0 < largest < 8192
    with pytest.raises(MemoryShort) as caught:
        memory.check(found)
    message = str(caught.value)
    assert f"needs {found.total_mb:.0f} MB" in message
    assert "400 MB are available" in message
    assert f"--ctx {largest}" in message
    assert "\n" not in message


def test_a_model_that_cannot_load_is_refused_without_a_context() -> None:
    found = memory.plan(HALF_BILLION, HALF_BILLION_WEIGHTS, 128, Running(64), budget_mb=300)
    with pytest.raises(MemoryShort, match="no context fits: take a smaller model"):
        memory.check(found)


def test_logits_of_every_row_cost_memory() -> None:
    one = memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 1024, Running(256), 10_000)
    all_rows = memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 1024, Running(256, logit_rows=256), 10_000)
    assert all_rows.workspace_mb - one.workspace_mb > 255 * 49_152 * 4 / 1e6


def test_scores_that_are_kept_grow_with_the_context() -> None:
    none, kept = Running(128), Running(128, score_bytes=4 * 9 * 128)
    plans = [memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 8000, how, 10_000) for how in (none, kept)]
    assert plans[1].workspace_mb - plans[0].workspace_mb == pytest.approx(8000 * 4608 / 1e6)
    assert plans[1].kv_mb == plans[0].kv_mb
    largest = memory.largest_context(SMOLLM2, SMOLLM2_WEIGHTS, kept, plans[0].total_mb)
    assert largest == int(8000 * 46_080 / (46_080 + 4608))


def test_weights_for_long_prompts_are_dense() -> None:
    more = dataclasses.replace(SMOLLM2_WEIGHTS, prefill=1000)
    assert more.resident - SMOLLM2_WEIGHTS.resident == pytest.approx(1100)


@pytest.mark.parametrize(("context", "chunk"), [(0, 256), (1024, 0)])
def test_nothing_is_no_plan(context: int, chunk: int) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, context, Running(chunk), 1000)


def test_the_mlp_width_follows_from_the_parameter_count() -> None:
    assert memory._intermediate(SMOLLM2) == pytest.approx(1536, rel=0.01)


@pytest.mark.parametrize(
    ("file_mb", "resident_mb"), [(100, 138), (92, 138), (538, 592), (269, 592)]
)
def test_a_file_of_known_size_is_estimated(file_mb: float, resident_mb: float) -> None:
    weights = memory.estimate_weights(int(file_mb * 1e6), SMOLLM2)
    assert weights.resident / 1e6 == pytest.approx(resident_mb, rel=0.15)


def test_a_cache_that_grows_by_concatenation_is_there_several_times() -> None:
    one = memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 8000, Running(128), 1e6)
    four = memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 8000, Running(128, caches=4), 1e6)
    assert four.kv_mb == pytest.approx(4 * one.kv_mb)
    assert four.total_mb - one.total_mb == pytest.approx(3 * one.kv_mb)
    tight = memory.plan(SMOLLM2, SMOLLM2_WEIGHTS, 8000, Running(128, caches=4), one.total_mb)
    exact = memory.plan(
        SMOLLM2, SMOLLM2_WEIGHTS, tight.largest_context_tokens, Running(128, caches=4), one.total_mb
    )
    assert 0 < tight.largest_context_tokens < 2001
    assert exact.fits


@pytest.mark.parametrize(("context", "measured_mb"), [(316, 377), (1916, 850)])
def test_the_plan_for_a_growing_cache_is_within_15_percent_too(
    context: int, measured_mb: float
) -> None:
    # A traced GPT-2 in int8, random weights: peak RSS after prefilling in chunks of 128 and 16
    # tokens one by one, ONNX Runtime 1.31.1, 2 cores, a tokenizer of 300 entries.
    shape = Shape("gpt2", 12, 12, 12, 64, 768, 50_257, 2048, 125_111_808)
    weights = memory.WeightBytes(
        codes=123_532_032, blocks=3_860_376, floats=21_760_608, dense=0, largest=38_597_376
    )
    found = memory.plan(shape, weights, context, Running(128, caches=memory.CONCAT_CACHES), 10_000)
    assert found.total_mb - tokenizer_mb(shape) == pytest.approx(measured_mb, rel=0.15)
