"""`edgellm export --calibrate`, `--target-mb`: what they make; one line for what they cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "export"))

import tiny_models as tiny

from edgellm.cli import main

TEXT = "the quick brown fox jumps over the lazy dog in the year that the water was there\n" * 60


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tiny.write_folder(tmp_path / "model", tiny.TINY)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        sys.exit(main(["export", *arguments]))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_a_target_is_kept_and_recorded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(tmp_path / "text.txt")
    code, out, _ = run(
        capsys, str(model), "-o", str(tmp_path / "out"), "--target-mb", "0.15",
        "--calibration", text, "--calibration-tokens", "512", "--json",
    )  # fmt: skip
    assert code == 0
    recipe = json.loads(out)["recipe"]
    assert recipe["calibration"]["text"] == "a file"
    assert recipe["matrices"]
    assert (tmp_path / "out" / "onnx" / "model_q4.onnx_data").stat().st_size <= 150_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "fp16", "--calibrate"), "--precision int4"),
        (("--target-mb", "-1"), "above 0"),
        (("--target-mb", "0.01", "--calibration", "TEXT"), "raise --target-mb"),
        (("--calibrate", "--calibration-tokens", "3"), "512 tokens or more"),
        (("--calibration", "no-such-file.txt"), "no-such-file.txt"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    given = [str(tmp_path / "text.txt") if o == "TEXT" else o for o in options]
    code, _, err = run(capsys, str(model), "-o", str(tmp_path / "out"), *given)
    assert code in (2, 4)
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
    left = [path.name for path in tmp_path.iterdir() if "out" in path.name]
    assert left == []
