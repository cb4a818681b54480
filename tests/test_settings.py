"""Who wins when a setting comes from several places."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.errors import UsageError
from edgellm.settings import Settings, current, from_environment, from_project, resolve


def test_the_first_layer_that_says_something_wins() -> None:
    chosen = resolve({"model": None, "threads": 1}, {"model": "b", "threads": 2}, {"model": "c"})
    assert chosen == Settings(model="b", threads=1)
    assert resolve() == Settings()


def test_a_denial_in_the_environment_beats_the_project_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edgellm.toml").write_text('offline = true\nmodel = "mine"\n')
    monkeypatch.chdir(tmp_path)
    assert current().offline
    monkeypatch.setenv("EDGELLM_OFFLINE", "0")
    assert not current().offline
    assert current({"offline": True}).offline
    assert current().model == "mine"


def test_home_is_the_variable_else_the_platforms_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", "~/models")
    assert current().home_folder() == Path.home() / "models"
    monkeypatch.setenv("EDGELLM_HOME", "")
    assert current().home_folder().name == "edgellm"


def test_a_switch_that_is_neither_on_nor_off_is_named() -> None:
    with pytest.raises(UsageError, match="EDGELLM_OFFLINE must be 1 or 0, got 'maybe'"):
        from_environment({"EDGELLM_OFFLINE": "maybe"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread = 2", "unknown setting 'thread'; known are model"),
        ("threads = true", "threads must be int, got True"),
        ("model = 3", "model must be str, got 3"),
        ("model = ", "cannot read"),
    ],
)
def test_a_wrong_line_of_the_project_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "edgellm.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        from_project(path)


def test_a_project_file_that_is_not_text_is_wrong_usage(tmp_path: Path) -> None:
    path = tmp_path / "edgellm.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot read"):
        from_project(path)
