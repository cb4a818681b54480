"""Speed with a session whose passes take made-up time, and one real run of tiny sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.bench import bandwidth, speed, speed_report
from edgellm.bench.bandwidth import Bandwidth
from edgellm.bench.speed import Case, Plan, Rate, Row
from edgellm.bench.speed_report import Figures, Subject
from edgellm.bundle.manifest import FileRecord, Graph, Manifest, Shape, Source
from edgellm.device.detect import Machine
from edgellm.errors import ContextFull, Corrupt, UsageError
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import CHUNK_TOKENS
from edgellm.runtime.options import LoadOptions

SHAPE = Shape(
    architecture="llama",
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    hidden_size=32,
    vocab_size=100,
    context_length=4096,
    parameters=10_000,
)
KV_BYTES_PER_TOKEN = 2 * 2 * 2 * 8 * 4
MANIFEST = Manifest(
    name="tiny",
    producer="test",
    source=Source("test"),
    shape=SHAPE,
    graphs={
        "native": Graph("native", "onnx/n.onnx", "onnx/d"),
        "portable": Graph("portable", "onnx/p.onnx", "onnx/d"),
    },
    files={"onnx/n.onnx": FileRecord(5, ""), "onnx/d": FileRecord(3 << 20, "")},
    recipe={"name": "exact"},
    weight_bytes={"codes": 5000, "blocks": 300, "floats": 1300, "dense": 700, "largest": 3200},
)


class Timed:
    """A session on a clock of its own: a pass takes a second, and more for each token."""

    def __init__(self, seconds_per_token: float = 0.0) -> None:
        self.now = 0.0
        self.seconds_per_token = seconds_per_token
        self.calls: list[tuple[int, int, int]] = []
        self.fed: list[int] = []

    def new_cache(self, capacity_tokens: int) -> KVCache:
        return KVCache(SHAPE, capacity_tokens)

    def filler(self, tokens: int) -> None:
        return None

    def forward(
        self, ids: Sequence[int], rows: Sequence[int], cache: KVCache
    ) -> NDArray[np.float32]:
        self.calls.append((len(cache), len(ids), len(rows)))
        self.fed.extend(ids)
        cache.tokens.extend(ids)
        self.now += 1 + len(ids) * self.seconds_per_token
        return np.zeros((len(rows), SHAPE.vocab_size), np.float32)

    def clock(self) -> float:
        return self.now


def measured(session: Timed, plan: Plan) -> list[Row]:
    return list(speed.measure(session, SHAPE, plan, session.clock))


def test_cases_come_in_the_order_of_llama_bench() -> None:
    plan = Plan((512, 64), (128,), (0, 256))
    assert [(case.name, case.depth) for case in plan.cases()] == [
        ("pp512", 0),
        ("pp64", 0),
        ("tg128", 0),
        ("pp512", 256),
        ("pp64", 256),
        ("tg128", 256),
    ]
    assert plan.context_tokens == 768


def test_a_length_of_zero_is_no_test() -> None:
    assert Plan((0,), (16,)).cases() == (Case("tg", 16, 0),)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_tokens": (-1,)},
        {"depths": (1 << 40,)},
        {"repetitions": 0},
        {"prompt_tokens": (0,), "decode_tokens": (0,)},
        {"depths": ()},
    ],
)
def test_an_impossible_plan_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Plan(**wrong)


def test_decoding_is_one_pass_and_one_row_a_token_from_an_empty_cache() -> None:
    session = Timed()
    (row,) = measured(session, Plan((), (4,), repetitions=3))
    warm_up, *runs = session.calls
    assert warm_up == (0, 1, 1)
    assert runs == [(length, 1, 1) for length in range(4)] * 3
    assert row.tokens_per_s.samples == (1, 1, 1)


def test_prefill_goes_in_chunks_and_asks_for_the_last_row_only() -> None:
    session = Timed()
    tokens = CHUNK_TOKENS + 7
    (row,) = measured(session, Plan((tokens,), (), repetitions=1))
    once = [(0, CHUNK_TOKENS, 0), (CHUNK_TOKENS, 7, 1)]
    assert session.calls == once * 2  # a warm-up and a run
    assert row.tokens_per_s.samples == (tokens / 2,)


def test_the_depth_is_filled_once_outside_the_clock() -> None:
    session = Timed(seconds_per_token=1.0)
    (row,) = measured(session, Plan((), (2,), (10,), repetitions=2))
    fill, warm_up, *runs = session.calls
    assert fill == (0, 10, 1)
    assert warm_up == (10, 1, 1)
    assert runs == [(10, 1, 1), (11, 1, 1)] * 2
    assert row.tokens_per_s.samples == (0.5, 0.5)


def test_every_repetition_and_every_run_feeds_the_same_known_tokens() -> None:
    first, second = Timed(), Timed()
    measured(first, Plan((), (8,), (3,), repetitions=2))
    measured(second, Plan((), (8,), (3,), repetitions=2))
    assert first.fed == second.fed
    assert first.fed[4:12] == first.fed[12:20]
    assert all(0 <= token < SHAPE.vocab_size for token in first.fed)
    assert len(set(first.fed)) > 4


def test_rows_come_as_soon_as_they_are_measured() -> None:
    session = Timed()
    rows = speed.measure(session, SHAPE, Plan((8,), (8,), repetitions=1), session.clock)
    next(rows)
    assert len(session.calls) == 2


def test_the_first_token_is_that_of_the_first_prompt() -> None:
    session = Timed()
    plan = Plan((0, CHUNK_TOKENS * 2, 1), (1,))
    assert speed.first_token_ms(session, SHAPE, plan, session.clock) == 2000
    assert speed.first_token_ms(session, SHAPE, Plan((), (1,)), session.clock) == 1000


def test_statistics_of_samples() -> None:
    rate = Rate((3.0, 1.0, 2.0, 8.0))
    assert (rate.median, rate.min, rate.max, rate.spread) == (2.5, 1, 8, 3.5)


def test_bytes_a_token_are_all_weights_and_the_cache_at_that_depth() -> None:
    weights = 5000 + 1300 + 700
    assert bandwidth.bytes_per_token(MANIFEST, 0, tied=True) == weights
    assert bandwidth.bytes_per_token(MANIFEST, 10, tied=True) == weights + 10 * KV_BYTES_PER_TOKEN
    # 3,200 of 10,000 parameters are the embedding.
    assert bandwidth.bytes_per_token(MANIFEST, 0, tied=False) == round(weights * 0.68)
    plain = replace(MANIFEST, weight_bytes={})
    assert bandwidth.bytes_per_token(plain, 0, tied=True) == 3 << 20


class Folder:
    """An opened bundle of which only manifest and folder matter."""

    def __init__(self, folder: Path, config: str | None) -> None:
        self.folder, self.manifest = folder, MANIFEST
        if config is not None:
            (folder / "config.json").write_text(config)
            files = {**MANIFEST.files, "config.json": FileRecord(len(config), "")}
            self.manifest = replace(MANIFEST, files=files)


@pytest.mark.parametrize(
    ("config", "expected"),
    [(None, True), ('{"tie_word_embeddings": true}', True), ("{}", False)],
)
def test_whether_the_embedding_is_the_head_stands_in_the_config(
    tmp_path: Path, config: str | None, expected: bool
) -> None:
    assert bandwidth.is_tied(Folder(tmp_path, config)) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_config_that_is_none_is_corrupt(tmp_path: Path, config: str) -> None:
    with pytest.raises(Corrupt, match="export the model again"):
        bandwidth.is_tied(Folder(tmp_path, config))  # type: ignore[arg-type]


def test_the_share_is_that_of_the_first_decoding_test(tmp_path: Path) -> None:
    bundle: Any = Folder(tmp_path, None)
    rows = [
        Row(Case("pp", 512, 0), Rate((9.0,))),
        Row(Case("tg", 20, 100), Rate((1000.0, 2000.0, 3000.0))),
        Row(Case("tg", 20, 200), Rate((1.0,))),
    ]
    bytes_ = 7000 + 110 * KV_BYTES_PER_TOKEN
    found = bandwidth.bandwidth(rows, bundle, 1.0)
    assert found == Bandwidth(1.0, bytes_, bytes_ * 2000 / 1e9)
    assert bandwidth.bandwidth(rows[:1], bundle, 1.0) == Bandwidth(1.0, None, None)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_read_bandwidth_is_a_figure_of_real_machines(threads: int) -> None:
    assert 0.1 < bandwidth.read_gb_s(threads, available_mb=64, tries=2) < 10_000


def subject() -> Subject:
    machine = Machine("Linux", "x86_64", "A CPU", frozenset({"sse", "avx"}), 2, 8000.0, 4000.0)
    return Subject(MANIFEST, "ab" * 32, ("CPUExecutionProvider",), 2, machine, "1.31.1")


ROWS = [
    Row(Case("pp", 512, 0), Rate((1400.0, 1500.0, 1450.0))),
    Row(Case("tg", 128, 512), Rate((200.123456789, 202.0, 210.0))),
]
FIGURES = Figures(210.0, 55.0, 240.0, Bandwidth(40.0, 112_000_000, 0.5656))


def test_the_table_has_llama_benchs_columns_and_widths() -> None:
    lines = [*speed_report.heading(), *(speed_report.line(subject(), row) for row in ROWS)]
    # Printed by llama-bench (llama-cpp-python 0.3.36) itself.
    assert lines[:2] == [
        "| model                          |       size |     params | backend    | threads "
        "|            test |                  t/s |",
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: "
        "| --------------: | -------------------: |",
    ]
    assert lines[2:] == [
        "| tiny exact                     |   3.00 MiB |     0.01 M | CPU        |       2 "
        "|           pp512 |      1450.00 ± 50.00 |",
        "| tiny exact                     |   3.00 MiB |     0.01 M | CPU        |       2 "
        "|    tg128 @ d512 |        202.00 ± 4.94 |",
    ]


def test_the_notes_name_the_statistic_and_what_was_not_done() -> None:
    text = "\n".join(speed_report.notes(FIGURES, ROWS))
    assert "median ± half the range of 3 runs" in text
    assert "no sampling" in text
    assert "tg128 at depth 512 reads 112 MB a token, 57% of that" in text
    without = replace(FIGURES, bandwidth=Bandwidth(40.0, None, None))
    assert "a token" not in "\n".join(speed_report.notes(without, ROWS[:1]))


def test_the_document_has_the_contracts_fields() -> None:
    found = json.loads(json.dumps(speed_report.document(subject(), ROWS, FIGURES)))
    assert list(found) == [
        "schema_version",
        "model",
        "bundle",
        "machine",
        "rows",
        "load_ms",
        "first_token_ms",
        "peak_rss_mb",
        "bandwidth",
    ]
    assert (found["schema_version"], found["model"], found["bundle"]) == (1, "tiny", "ab" * 32)
    assert found["rows"][1] == {
        "test": "tg128",
        "depth": 512,
        "threads": 2,
        "tokens_per_s": {
            "median": 202.0,
            "min": 200.123,
            "max": 210.0,
            "samples": [200.123, 202.0, 210.0],
        },
    }
    assert found["machine"]["cpu_features"] == ["avx", "sse"]
    assert found["bandwidth"] == {
        "measured_gb_s": 40.0,
        "bytes_per_token": 112_000_000,
        "share": 0.5656,
    }


@pytest.mark.weights
def test_a_real_model_is_measured(smollm2_bundle: Path) -> None:
    plan = Plan((24,), (4,), (0, 8), repetitions=2)
    loaded = speed.load(str(smollm2_bundle), plan, LoadOptions(threads=1, offline=True))
    shape = loaded.bundle.manifest.shape
    rows = list(speed.measure(loaded.session, shape, plan))
    assert [(row.case.name, row.case.depth) for row in rows] == [
        ("pp24", 0),
        ("tg4", 0),
        ("pp24", 8),
        ("tg4", 8),
    ]
    assert all(1 < sample < 1e6 for row in rows for sample in row.tokens_per_s.samples)
    assert speed.first_token_ms(loaded.session, shape, plan) > 1
    assert (loaded.threads, loaded.load_ms > 1) == (1, True)
    manifest = (smollm2_bundle / "edgellm.json").read_bytes()
    assert loaded.bundle_sha256 == hashlib.sha256(manifest).hexdigest()
    found = bandwidth.bandwidth(rows, loaded.bundle, 40.0)
    # Tied Q8_0 embedding and Q4_1 layers: a bit more than the file, which has float16 scales.
    assert found.bytes_per_token is not None
    assert 98e6 < found.bytes_per_token < 1.2 * 98e6


@pytest.mark.weights
def test_a_plan_longer_than_the_model_is_refused_before_the_graph_is_loaded(
    smollm2_bundle: Path,
) -> None:
    with pytest.raises(ContextFull, match=r"needs 8704 tokens and .* holds 8192"):
        speed.load(str(smollm2_bundle), Plan(depths=(8192,)), LoadOptions(offline=True))
