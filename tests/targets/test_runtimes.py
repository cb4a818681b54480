"""One bundle, every runtime: the same folder gives the same ids and the same greedy tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import texts
from harness import NEW_TOKENS, RUNTIMES, Bundles, Runs

pytestmark = pytest.mark.targets

SMOLLM2 = pytest.param("smollm2", marks=pytest.mark.weights)
every_bundle = pytest.mark.parametrize(
    "name", ["tiny-fp32", "tiny-int8", "tiny-int4", "tiny-int4_block128", "tiny-exact", SMOLLM2]
)
# Half floats are rounded in another order by each runtime; these models have no close calls.
OTHER_TYPES = ["tiny-q4f16", "tiny-fp32-kv-fp16", "tiny-fp32-kv-int8"]
every_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


@every_bundle
@every_runtime
def test_a_runtime_gives_the_same_ids_for_text(
    runtime: str, name: str, bundles: Bundles, run: Runs
) -> None:
    bundle = bundles(name)
    found = run(runtime, bundle).texts
    every = [*texts.HARD, *texts.mixes(len(bundle.texts) - len(texts.HARD))]
    wrong = [
        f"{text!r}: {mine} instead of {ids}"
        for text, ids, mine in zip(every, bundle.texts, found, strict=True)
        if ids != mine
    ]
    assert not wrong, f"{len(wrong)} of {len(every)} texts differ\n" + "\n".join(wrong[:5])


@every_bundle
@every_runtime
def test_a_runtime_renders_the_same_chat(
    runtime: str, name: str, bundles: Bundles, run: Runs
) -> None:
    bundle = bundles(name)
    assert run(runtime, bundle).chats == bundle.chats


@every_bundle
@every_runtime
def test_a_runtime_picks_the_same_tokens(
    runtime: str, name: str, bundles: Bundles, run: Runs, record_property: Callable[..., None]
) -> None:
    bundle = bundles(name)
    answer = run(runtime, bundle)
    # WebAssembly ignores accuracy_level 4: it computes what float32 activations give.
    web = runtime == "transformers.js-chromium"
    expected = bundle.exact_answers if web else bundle.answers
    equal = [common(*pair) for pair in zip(expected, answer.answers, strict=True)]
    of = [len(tokens) for tokens in expected]
    report = f"{runtime} {name}: equal tokens {equal} of {of}, {answer.versions}"
    record_property("agreement", report)
    print(report)
    assert answer.answers == expected, report


@pytest.mark.parametrize("name", OTHER_TYPES)
@every_runtime
def test_a_runtime_takes_float16_activations_and_other_caches(
    runtime: str, name: str, bundles: Bundles, run: Runs
) -> None:
    bundle = bundles(name)
    assert run(runtime, bundle).answers == bundle.answers


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))  # noqa: B905


@pytest.mark.parametrize("name", ["tiny-fp32", "tiny-int8", "tiny-int4", SMOLLM2])
def test_the_prompts_cover_whole_answers_and_ones_that_end(name: str, bundles: Bundles) -> None:
    lengths = [len(answer) for answer in bundles(name).answers]
    assert NEW_TOKENS in lengths
    assert min(lengths) < NEW_TOKENS


def test_the_page_reaches_no_other_machine_and_runs_with_threads(
    bundles: Bundles, run: Runs
) -> None:
    extra = run("transformers.js-chromium", bundles("tiny-fp32")).extra
    assert extra["outside"] == []
    assert extra["isolated"]


def test_transformers_feeds_only_what_the_graph_takes(bundles: Bundles, run: Runs) -> None:
    extra = run("optimum", bundles("tiny-fp32")).extra
    assert extra["inputs"] == ["attention_mask", "input_ids"]
