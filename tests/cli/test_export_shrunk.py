"""`edgellm export` leaving things out, and `edgellm run --lora`: from the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "export"))

import tiny_models as tiny

from edgellm.cli import main

TEXT = "the quick brown fox jumps over the lazy dog in the year that the water was there\n" * 150
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    tiny.write_folder(tmp_path / "model", tiny.Sizes(layers=3))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            sys.exit(main(list(arguments)))
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


def test_what_was_left_out_is_recorded(run: Run) -> None:
    code, out, err = run(
        "export", "./model", "-o", "small", "--keep-vocab", "text.txt", "--drop-layers", "1",
        "--mlp-width", "64", "--calibration", "text.txt", "--json",
    )  # fmt: skip
    assert code == 0, err
    recipe = json.loads(out)["recipe"]
    assert len(recipe["layers"]["dropped"]) == 1
    assert recipe["mlp"]["width"] == 64
    assert recipe["vocabulary"]["kept"] <= recipe["vocabulary"]["of"]
    assert "calibration" not in recipe
    assert "layer  influence  KL alone" in err
    assert run("run", "./small", "the quick", "-n", "3", "-t", "0")[0] == 0


def test_a_smaller_model_is_calibrated_when_that_is_asked_for_too(run: Run) -> None:
    code, out, err = run(
        "export", "./model", "-o", "small", "--drop-layers", "1", "--precision", "int4",
        "--calibrate", "--calibration", "text.txt", "--calibration-tokens", "512", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert {"layers", "calibration"} <= json.loads(out)["recipe"].keys()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--keep-script", "klingon"), 2, "no letter is written in 'klingon'"),
        (("--keep-vocab", "nowhere.txt"), 4, "cannot read nowhere.txt"),
        (("--drop-layers", "3"), 2, "from 1 to 2"),
        (("--mlp-width", "33"), 2, "multiple of 32"),
        (("--lora-mode", "runtime"), 2, "needs --lora DIR"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = run("export", "./model", "-o", "small", *options)
    assert found == code
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not out
    assert not (tmp_path / "small").exists()


def write_adapter(folder: Path) -> None:
    rng = np.random.default_rng(1)
    at = "base_model.model.model.layers.1.self_attn.q_proj"
    shapes = {f"{at}.lora_A.weight": (2, 64), f"{at}.lora_B.weight": (64, 2)}
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    tiny.write_tensors(folder, {name: a.astype(np.float32) for name, a in tensors.items()})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def test_run_takes_an_adapter_where_there_is_room(run: Run, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    precise = ("--precision", "fp32")
    lora = ("--lora", "adapter")
    assert run("export", "./model", "-o", "merged", *precise, *lora)[0] == 0
    assert run("export", "./model", "-o", "room", *precise, *lora, "--lora-mode", "runtime")[0] == 0
    assert run("export", "./model", "-o", "plain", *precise)[0] == 0
    prompt = ("the quick", "-n", "16", "-t", "0")
    adapted = run("run", "./room", *prompt, *lora)
    assert adapted[0] == 0, adapted[2]
    assert adapted[1] == run("run", "./merged", *prompt)[1]
    assert run("run", "./room", *prompt)[1] == run("run", "./plain", *prompt)[1] != adapted[1]
    code, out, err = run("run", "./plain", *prompt, *lora)
    assert code == 5
    assert not out
    assert "export it again with --lora DIR --lora-mode runtime" in err.splitlines()[-1]
    code, _, err = run("run", "./room", *prompt, "--lora", "nowhere")
    assert code == 4
    assert "no adapter folder nowhere" in err.splitlines()[-1]
