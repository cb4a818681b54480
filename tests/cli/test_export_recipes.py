"""`edgellm export --precision`: a name or a file; what was found is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "export"))

import tiny_models as tiny

from edgellm.cli import main
from edgellm_export.recipe import names

MINE = """
name = "mine"
version = 2
suffix = "_q4"
linear = { kind = "integer", bits = 4, block_size = 32, asymmetric = true }
head = { kind = "keep" }
limits = { max_kl = 0.5, min_top1 = 0.8 }
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(MINE, encoding="utf-8")
    return tiny.write_folder(tmp_path / "model", tiny.TINY)


@pytest.mark.parametrize("path", ["mine.toml", "./mine.toml"])
def test_a_file_is_a_precision_and_show_tells_what_was_found(
    model: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    assert main(["export", str(model), "-o", "out", "--precision", path, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["recipe"]["name"], answer["recipe"]["version"]) == ("mine", 2)
    assert answer["recipe"]["limits"] == {"max_kl": 0.5, "min_top1": 0.8}
    assert main(["show", "./out"]) == 0
    shown = capsys.readouterr().out
    for said in ("max_kl 0.5, min_top1 0.8", "text_kl", "text_top1", "turns_error"):
        assert said in shown
    assert f"{answer['self_check']['text_kl']:.6g}" in shown


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("int5", "choose one of"),
        ("no.toml", "cannot read the recipe no.toml"),
        ("bad.toml", "bad.toml: linear.bits = 5 must be one of 2, 4, 8"),
    ],
)
def test_a_wrong_precision_is_one_line_before_anything_is_fetched(
    model: Path, capsys: pytest.CaptureFixture[str], precision: str, said: str
) -> None:
    Path("bad.toml").write_text(MINE.replace("bits = 4", "bits = 5"), encoding="utf-8")
    code = main(["export", "hf:org/name", "-o", "out", "--precision", precision])
    err = capsys.readouterr().err
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not Path("out").exists()


def test_a_bundle_beyond_the_limit_is_not_published(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text(MINE.replace("max_kl = 0.5", "max_kl = 1e-6"), encoding="utf-8")
    code = main(["export", str(model), "-o", "out", "--precision", "mine.toml"])
    assert code == 1
    assert "(mine allows 1e-06)" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out").exists()


def test_a_terminal_sees_layers_done_and_the_time_left(model: Path) -> None:
    pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
    command = ["-m", "edgellm", "export", str(model), "-o", "out"]
    child = pexpect.spawn(sys.executable, command, dimensions=(24, 100), timeout=60)
    try:
        child.expect(rb"converting layers: .*/2, [^\r]* left")
        child.expect(rb"checking weights: .*/20, [^\r]* left")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 0


def test_a_pipe_sees_no_bar(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(model), "-o", "out"]) == 0
    assert " left" not in capsys.readouterr().err


def test_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert f"--precision [{'|'.join(names())}|FILE.toml]" in capsys.readouterr().out


def test_a_store_is_filled_by_name_only(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", str(model), "--precision", "./mine.toml"]) == 2
    assert "--precision ./mine.toml" in capsys.readouterr().err
