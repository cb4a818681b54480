"""`edgellm tune` on a tiny model: every row is measured, a second run makes nothing again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "export"))

import tiny_models as tiny

from edgellm.cli import eval as eval_command
from edgellm.cli import main
from edgellm.cli import tune as tune_command

TEXT = "the quick brown fox jumps over the lazy dog in the year that the water was there\n" * 60


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    for module in (eval_command, tune_command):
        monkeypatch.setattr(module, "WINDOW_TOKENS", 32)
    monkeypatch.setattr(tune_command, "DECODED_TOKENS", 4)
    monkeypatch.setattr(tune_command, "REPETITIONS", 1)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tiny.write_folder(tmp_path / "model", tiny.TINY)


def arguments(model: Path, *more: str) -> list[str]:
    text = str(model.parent / "text.txt")
    given = ["--text", text, "--tokens", "64", "--calibration", text, "--calibration-tokens", "512"]
    return ["tune", str(model), *given, *more]


def test_every_row_has_size_speed_and_quality(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--precision", "int8", "--calibrated", "int4", "--target-mb", "0.15", "--json"]
    assert main(arguments(model, *wanted)) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows.keys() == {"fp32", "int8", "int4-calibrated", "0.15mb"}
    assert rows["fp32"]["kl_mean"] == 0
    assert 0 < rows["int8"]["kl_mean"] < rows["int4-calibrated"]["kl_mean"]
    assert rows["0.15mb"]["bytes"] <= 150_000
    assert rows["int4-calibrated"]["bytes"] < rows["int8"]["bytes"] < rows["fp32"]["bytes"]
    for row in rows.values():
        assert row["tokens_per_s"] > 0
        assert row["perplexity"] > 1
        assert row["tokens"] == 64
        assert row["dominated_by"] is None or row["dominated_by"] in rows
    assert not list((model.parent / "home").glob("tune.*"))


def test_a_second_run_takes_over_bundles_and_statistics(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "tuned"
    assert main(arguments(model, "--calibrated", "int4", "-o", str(out))) == 0
    first = capsys.readouterr()
    assert "making int4-calibrated" in first.err
    assert first.out.splitlines()[0].split() == [
        "MB",
        "tokens/s",
        "mean",
        "KL",
        "top-1",
        "perplexity",
    ]
    again = arguments(model, "--calibrated", "int4", "--calibrated", "int8", "-o", str(out))
    assert main(again) == 0
    second = capsys.readouterr()
    assert "making int4-calibrated" not in second.err
    assert "making int8-calibrated" in second.err
    assert "using the activations kept" in second.err
    assert len(second.out.splitlines()) == 4


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--tokens", "0"], 2, "1 or more, got 0"),
        (["--target-mb", "0.001"], 2, "raise --target-mb"),
        (["--text", "no-such-file"], 4, "no text file no-such-file"),
    ],
)
def test_what_cannot_be_is_one_line(
    model: Path, more: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, *more)) == code
    captured = capsys.readouterr()
    assert words in captured.err.splitlines()[-1]
    assert captured.out == ""
