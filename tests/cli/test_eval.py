"""`edgellm eval` with a scripted model behind the door."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.cli import eval as eval_command
from edgellm.cli import main
from edgellm.runtime.options import LoadOptions


class Uniform:
    """Every one of 128 tokens is equally likely; a sharp one likes token 0."""

    def __init__(self, sharpness: float) -> None:
        self.row = np.zeros(128, np.float32)
        self.row[0] = sharpness

    def encode(self, text: str) -> list[int]:
        return [ord(character) % 128 for character in text]

    def logits(self, ids: list[int]) -> Iterator[NDArray[np.float32]]:
        yield np.tile(self.row, (len(ids), 1))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, LoadOptions]]:
    """What was opened; a reference whose name is a number has that sharpness."""
    calls: list[tuple[str, LoadOptions]] = []

    def door(reference: str, options: LoadOptions) -> AbstractContextManager[Uniform]:
        calls.append((reference, options))
        return nullcontext(Uniform(float(reference)))

    monkeypatch.setattr(eval_command, "open_logits", door)
    return calls


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times. " * 100, encoding="utf-8")
    return path


def test_json_holds_the_contracts_fields(
    opened: list[tuple[str, LoadOptions]], text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "0", "--text", str(text_file), "--tokens", "300", "--json"]
    arguments += ["--reference", "1", "--threads", "2", "--offline"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert list(document) == [
        "perplexity",
        "kl_mean",
        "kl_p99",
        "top1_agreement",
        "tokens",
        "text_sha256",
        "reference",
    ]
    assert document["perplexity"] == 128
    assert (document["tokens"], document["top1_agreement"], document["reference"]) == (300, 1, "1")
    assert document["kl_mean"] == document["kl_p99"] > 0
    assert document["text_sha256"] == hashlib.sha256(text_file.read_bytes()).hexdigest()
    assert err == ""
    assert [name for name, _ in opened] == ["0", "1"]
    assert opened[0][1] == LoadOptions(context_tokens=512, threads=2, offline=True)


def test_without_reference_the_distances_are_null(
    opened: list[tuple[str, LoadOptions]], text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "0", "--text", str(text_file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kl_mean"] is document["kl_p99"] is document["top1_agreement"] is None
    assert document["reference"] is None


def test_a_figure_beyond_all_numbers_is_null_in_json(
    opened: list[tuple[str, LoadOptions]], text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "1e6", "--text", str(text_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] is None


def test_the_table_shows_each_figure(
    opened: list[tuple[str, LoadOptions]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "0", "--reference", "0", "--tokens", "256"]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "perplexity",
        "mean KL",
        "99th percentile KL",
        "same best token",
        "reference",
        "tokens scored",
        "text sha256",
    ]
    assert "128.000" in out
    assert "100.00%" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["eval", "0", "--tokens", "0"], 2, "1 or more, got 0"),
        (["eval", "0", "--text", "no-such-file"], 4, "no text file no-such-file"),
        (["eval", "0", "--text", "."], 4, "no text file"),
        (["eval", "0", "--threads", "0"], 2, "threads must be"),
        (["eval"], 2, "MODEL"),
    ],
)
def test_a_wrong_question_is_one_line(
    opened: list[tuple[str, LoadOptions]],
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
    assert opened == []


def test_text_that_is_not_utf8_is_refused_before_a_model_is_loaded(
    opened: list[tuple[str, LoadOptions]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    assert main(["eval", "0", "--text", str(path)]) == 2
    assert "not valid UTF-8 at byte 3" in capsys.readouterr().err
    assert opened == []


def test_help_loads_neither_numpy_nor_the_runtime() -> None:
    code = (
        "import sys; from edgellm.cli import main; main(['eval', '--help']);"
        "sys.exit(bool({'numpy', 'onnxruntime', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--reference" in done.stdout
