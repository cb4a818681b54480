"""`edgellm bench` with a session that computes nothing behind the door."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.bench import bandwidth
from edgellm.bench.speed import Plan
from edgellm.bundle.manifest import FileRecord, Graph, Manifest, Shape, Source
from edgellm.cli import bench, main
from edgellm.errors import ContextFull
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.stream import Placement

SHAPE = Shape("llama", 1, 1, 1, 8, 8, 10, 4096, 1000)
MANIFEST = Manifest(
    name="tiny",
    producer="test",
    source=Source("test"),
    shape=SHAPE,
    graphs={"native": Graph("native", "onnx/n.onnx", "onnx/d")},
    files={"onnx/d": FileRecord(1 << 20, "")},
    recipe={"name": "int4"},
)


class Instant:
    """A session that answers at once."""

    notice: str | None = None

    def new_cache(self, capacity_tokens: int) -> KVCache:
        return KVCache(SHAPE, capacity_tokens)

    def forward(
        self, ids: Sequence[int], rows: Sequence[int], cache: KVCache
    ) -> NDArray[np.float32]:
        cache.tokens.extend(ids)
        return np.zeros((len(rows), SHAPE.vocab_size), np.float32)

    def filler(self, tokens: int) -> None:
        return None

    def placement(self) -> dict[str, Placement]:
        return {"CPUExecutionProvider": Placement(5, 1.0)}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Plan, LoadOptions]]:
    """What was opened; "long" does not fit, "elsewhere" has a notice."""
    calls: list[tuple[str, Plan, LoadOptions]] = []

    def door(reference: str, plan: Plan, options: LoadOptions) -> Any:
        calls.append((reference, plan, options))
        if reference == "long":
            raise ContextFull("the longest test needs 9000 tokens; choose smaller lengths")
        session = Instant()
        session.notice = "running on the CPU" if reference == "elsewhere" else None
        bundle = SimpleNamespace(manifest=MANIFEST, folder=Path())
        return SimpleNamespace(
            bundle=bundle, session=session, threads=2, load_ms=3.0, bundle_sha256="ab" * 32
        )

    monkeypatch.setattr(bench, "open_speed", door)
    monkeypatch.setattr(bandwidth, "read_gb_s", lambda threads, available_mb: 10.0)
    return calls


Opened = list[tuple[str, Plan, LoadOptions]]


def test_without_arguments_the_default_model_and_llama_benchs_tests(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "-r", "1"]) == 0
    assert opened == [("smollm2-135m", Plan((512,), (128,), (0,), 1), LoadOptions())]
    out, err = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[:4]]
    assert cells[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert [row[:6] for row in cells[2:]] == [
        ["tiny int4", "1.00 MiB", "0.00 M", "CPU", "2", name] for name in ("pp512", "tg128")
    ]
    assert "median" in out
    assert err == ""


def test_lists_have_commas_or_repeat_the_option(opened: Opened) -> None:
    arguments = ["bench", "m", "-p", "8,16", "-p", "4", "-n", "0", "-d", "0, 2", "-r", "2"]
    assert main([*arguments, "--threads", "1", "--offline", "--json"]) == 0
    assert opened[0][1] == Plan((8, 16, 4), (0,), (0, 2), 2)
    assert opened[0][2] == LoadOptions(threads=1, offline=True)


def test_json_is_one_document_with_a_row_for_each_test(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "elsewhere", "-p", "8", "-n", "4", "-d", "0,2", "-r", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    tests = [(row["test"], row["depth"], row["threads"]) for row in document["rows"]]
    assert tests == [("pp8", 0, 2), ("tg4", 0, 2), ("pp8", 2, 2), ("tg4", 2, 2)]
    assert all(len(row["tokens_per_s"]["samples"]) == 3 for row in document["rows"])
    assert document["bundle"] == "ab" * 32
    assert document["load_ms"] == 3.0
    assert document["peak_rss_mb"] > 1
    assert document["bandwidth"]["measured_gb_s"] == 10
    assert document["bandwidth"]["bytes_per_token"] == (1 << 20) + 2 * 2 * 8 * 4
    assert err == "running on the CPU\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bench", "m", "-p", "many"], 2, "'many' must be numbers of tokens"),
        (["bench", "m", "-p", "8,,9"], 2, "commas between them"),
        (["bench", "m", "-d", "-5"], 2, "commas between them"),
        (["bench", "m", "-n", "99999999999999999999"], 2, "commas between them"),
        (["bench", "m", "-n", "999999999"], 2, "decode_tokens must be in"),
        (["bench", "m", "-r", "0"], 2, "repetitions must be 1 or more"),
        (["bench", "m", "-p", "0", "-n", "0"], 2, "nothing to measure"),
        (["bench", "m", "--threads", "0"], 2, "threads must be"),
        (["bench", "long"], 3, "needs 9000 tokens"),
    ],
)
def test_a_wrong_question_is_one_line(
    opened: Opened,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_help_loads_neither_numpy_nor_the_runtime() -> None:
    code = (
        "import sys; from edgellm.cli import main; main(['bench', '--help']);"
        "sys.exit(bool({'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--depth" in done.stdout
