"""The parts of tests/benchmarks that need neither peers nor a quiet machine."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgellm.bench.quality import Report
from edgellm_export.checkpoint import TextFiles, safetensors_file
from edgellm_export.weights import Dense

FOLDER = Path(__file__).parents[1] / "benchmarks"
KEY = ("tg128", 0)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a program of that folder by name, as Python does when it is run."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_every_promise_is_about_a_test_that_is_run(program: Any) -> None:
    verdicts, load = program("verdicts"), program("contenders").Load()
    tests = [f"pp{n}" for n in load.prompt_tokens] + [f"tg{n}" for n in load.decode_tokens]
    run = {(test, depth) for test in tests for depth in load.depths}
    assert {(target.test, target.depth) for target in verdicts.TARGETS} <= run


def test_a_verdict_is_the_ratio_of_medians_to_the_fastest_peer(program: Any) -> None:
    verdicts = program("verdicts")
    target = verdicts.Target("us", ("slow", "fast"), *KEY, 1.1)
    samples = {
        "us": {KEY: [110.0, 120.0, 500.0]},
        "slow": {KEY: [10.0, 10.0, 900.0]},
        "fast": {KEY: [100.0, 100.0, 100.0]},
    }
    found = verdicts.verdict(target, samples)
    assert (found.peer, found.ours, found.theirs) == ("fast", 120, 100)
    assert found.ratio == pytest.approx(1.2)
    assert (found.lowest, found.highest) == pytest.approx((1.1, 5.0))
    assert found.word == "met"
    samples["us"][KEY] = [109.0] * 3
    assert verdicts.verdict(target, samples).word == "MISSED"


@pytest.mark.parametrize("absent", ["us", "fast", "slow"])
def test_without_one_contender_nothing_is_claimed(program: Any, absent: str) -> None:
    verdicts = program("verdicts")
    target = verdicts.Target("us", ("slow", "fast"), *KEY, 0.1)
    samples = {name: {KEY: [1.0]} for name in ("us", "slow", "fast") if name != absent}
    found = verdicts.verdict(target, samples)
    assert found.word == "not measured"
    assert "not measured" in verdicts.verdict_table([found])


def test_llama_benchs_document_is_read(program: Any) -> None:
    # Shortened from llama-bench (llama-cpp-python 0.3.36) -o json.
    rows = [
        {"build_commit": "0c1e570", "n_prompt": 512, "n_gen": 0, "n_depth": 0, "samples_ts": [9.5]},
        {"build_commit": "0c1e570", "n_prompt": 0, "n_gen": 128, "n_depth": 512, "samples_ts": [2]},
    ]
    answer = program("contenders").read_llama_bench(json.dumps(rows))
    assert answer.samples == {("pp512", 0): [9.5], ("tg128", 512): [2]}
    assert answer.version == "llama.cpp 0c1e570"


def test_our_own_document_and_genais_are_read(program: Any) -> None:
    contenders = program("contenders")
    rate = {"median": 2.0, "min": 2.0, "max": 2.0, "samples": [2.0]}
    row = {"test": "tg128", "depth": 0, "threads": 2, "tokens_per_s": rate}
    ours = {"machine": {"onnxruntime": "1.31.1"}, "rows": [row]}
    assert contenders.read_edgellm(json.dumps(ours)).samples == {KEY: [2.0]}
    theirs = {"version": "0.18.0", "rows": [{"test": "tg128", "depth": 0, "samples": [3.0]}]}
    noisy = "a warning of the library\n" + json.dumps(theirs) + "\n"
    answer = contenders.read_genai(noisy)
    assert (answer.samples, answer.version) == ({KEY: [3.0]}, "onnxruntime-genai 0.18.0")


def printing(contenders: ModuleType, name: str, samples: float) -> Any:
    """A contender whose program prints one figure."""
    rows = [{"test": "tg128", "depth": 0, "samples": [samples]}]
    document = json.dumps({"version": "1", "rows": rows})
    return contenders.Contender(
        name, (sys.executable, "-c", f"print({document!r})"), contenders.read_genai
    )


def test_contenders_run_in_turn_and_all_samples_are_kept(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare, contenders, verdicts = map(program, ("compare", "contenders", "verdicts"))
    monkeypatch.setattr(program("quiet"), "busy_percent", lambda seconds: 55.0)
    figures = {verdicts.EXACT: 13.0, verdicts.LLAMA_Q4_1: 10.0}
    entered = [printing(contenders, name, figure) for name, figure in figures.items()]
    found = compare.compare(entered, rounds=2)
    order = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert order == [verdicts.EXACT, verdicts.LLAMA_Q4_1] * 2
    assert found.samples[verdicts.EXACT] == {KEY: [13.0, 13.0]}
    decided = [verdicts.verdict(target, found.samples) for target in verdicts.TARGETS]
    facts = {
        "date": "today",
        "machine": {"cpu_name": "a CPU", "architecture": "x86_64"},
        "threads": 2,
        "rounds": 2,
        "weights": "w.gguf",
        "edgellm": "abc",
    }
    text = "\n".join(compare.report(found, decided, facts))
    assert "| tg128 | exact | 13.0 | llama-bench Q4_1 | 10.0 | 1.30 |" in text
    assert "| ≥ 1.2 | met |" in text
    assert "prove nothing" in text
    document = json.loads(json.dumps(compare.document(found, decided, facts)))
    assert [row["verdict"] for row in document["verdicts"]].count("not measured") == 7
    assert document["samples"][0]["tokens_per_s"] == [13.0, 13.0]


def test_a_contender_that_fails_ends_the_run_with_its_last_words(program: Any) -> None:
    contenders = program("contenders")
    code = "import sys; print('first', file=sys.stderr); sys.exit('no such model')"
    broken = contenders.Contender("peer", (sys.executable, "-c", code), contenders.read_genai)
    with pytest.raises(SystemExit, match=r"peer failed \(1\): no such model"):
        broken.run()


def test_a_busy_machine_is_refused(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare, quiet = program("compare"), program("quiet")
    monkeypatch.setattr(quiet, "ask", lambda: "its CPU is 92 % busy, 10 % is the limit")
    monkeypatch.setattr(sys, "argv", ["compare.py", "--gguf", str(Path(__file__))])
    assert compare.main() == compare.BUSY
    assert "this machine is busy: its CPU is 92 % busy" in capsys.readouterr().err


def test_busy_means_used_cores_or_a_queue(program: Any) -> None:
    quiet = program("quiet")
    assert quiet.reason_to_wait(busy=3.0, load=0.2, cores=2) is None
    assert "CPU is 50 % busy" in quiet.reason_to_wait(busy=50.0, load=0.2, cores=2)
    assert "load average is 1.5" in quiet.reason_to_wait(busy=3.0, load=1.5, cores=2)


def test_half_made_files_are_never_taken_for_whole_ones(program: Any, tmp_path: Path) -> None:
    prepare = program("prepare")
    write = "import sys; open(sys.argv[1], 'w').write('x')"
    with pytest.raises(SystemExit, match="could not be made: cut off"):
        prepare.made(
            tmp_path / "out",
            lambda part: [sys.executable, "-c", f"{write}; sys.exit('cut off')", str(part)],
        )
    assert not (tmp_path / "out").exists()
    made = prepare.made(tmp_path / "out", lambda part: [sys.executable, "-c", write, str(part)])
    assert made.read_text() == "x"
    assert prepare.made(made, lambda part: ["never called"]) == made


def test_the_folder_of_float_weights_is_sound_safetensors(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([0.5, -1.0], np.float32),
    }
    checkpoint = SimpleNamespace(
        config={"model_type": "llama", "hidden_size": 3, "rope_scaling": None},
        names=lambda: frozenset(tensors),
        weight=lambda name: Dense(tensors[name].shape, "float32", lambda: tensors[name]),
        text_files=lambda: TextFiles("{}"),
    )
    dequantize = program("dequantize")
    monkeypatch.setattr(dequantize, "open_checkpoint", lambda source: checkpoint)
    dequantize.write_folder(Path("any.gguf"), tmp_path / "hf")
    file = safetensors_file.read(tmp_path / "hf" / "model.safetensors")
    for name, values in tensors.items():
        read = file.raw(file.tensors[name]).view("<f4").reshape(values.shape)
        np.testing.assert_array_equal(read, values)
    config = json.loads((tmp_path / "hf" / "config.json").read_bytes())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "rope_scaling" not in config


def test_quality_figures_are_judged_by_level(program: Any) -> None:
    quality = program("quality")
    report = Report(24.0, 0.004, 0.1, 0.96, 4096)
    words = [(figure.target, figure.met) for figure in quality.distance_figures(report, 4)]
    assert words == [("< 0.005", True), ("> 95 %", True)]
    assert [figure.met for figure in quality.distance_figures(report, 0)] == [False]
    unknown = Report(24.0, None, None, None, 4096)
    assert [figure.met for figure in quality.distance_figures(unknown, 4)] == [False, False]
    assert math.isnan(quality.known(None))
    assert "| MISSED |" in quality.table(list(quality.distance_figures(report, 0)))


def test_an_export_keeps_its_promise_or_not(program: Any) -> None:
    cost = program("export_cost")
    limit = cost.limit_mb(next(case for case in cost.CASES if case.name == "big-int4"))
    # 1.24 billion bfloat16 weights: 2.47 GB.
    assert 3700 < limit < 3710
    good = cost.Cost("big-int4", 119, 200, limit - 1, 800, 0)
    assert cost.met(good)
    assert not cost.met(replace(good, wall_s=121))
    assert not cost.met(replace(good, memory_mb=limit + 1))
    text = "\n".join(cost.report([good, cost.Cost("smollm2-exact", 11, 9, 400, 120, 50)]))
    assert "| big-int4 | 119.0 | 120 |" in text
    assert "MISSED" in text
    assert "prove nothing" in text
