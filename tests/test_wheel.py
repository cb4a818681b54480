"""The wheel holds the house: both packages, their data, the licence, and it works unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"edgellm": ROOT / "edgellm", "edgellm_export": ROOT / "export" / "edgellm_export"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built by the backend that pip would call, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("package", SOURCES)
def test_every_source_and_data_file_is_in_the_wheel(names: set[str], package: str) -> None:
    folder = SOURCES[package]
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    wanted = {f"{package}/{path.relative_to(folder).as_posix()}" for path in files}
    assert wanted - names == set()
    assert f"{package}/py.typed" in names


def test_profiles_aliases_and_recipes_are_data_of_the_wheel(names: set[str]) -> None:
    profiles = {path.name for path in (ROOT / "devices").glob("*.toml")}
    assert {f"edgellm/device/data/{name}" for name in profiles} <= names
    assert "edgellm/hub/aliases.toml" in names
    recipes = {path.name for path in (ROOT / "export" / "recipes").glob("*.toml")}
    assert {f"edgellm_export/recipes/{name}" for name in recipes} <= names


def test_the_licence_and_the_command_are_in_the_wheel(wheel: Path, names: set[str]) -> None:
    assert [name for name in names if name.endswith("dist-info/licenses/LICENSE")]
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "edgellm = edgellm.cli:main" in archive.read(entry).decode()


def test_nothing_else_is_in_the_wheel(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(SOURCES)
    assert not [name for name in names if name.endswith((".gguf", ".onnx", ".pyc", ".safetensors"))]


def test_an_unpacked_wheel_reads_its_own_profiles_and_recipes(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "from edgellm.device import profiles;"
        "from edgellm_export import recipe;"
        "print(profiles.folder()); print(profiles.profile('rpi5-8gb').name);"
        "print(recipe.folder()); print(recipe.recipe('int4').linear.bits, len(recipe.names()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    folder, name, recipes, found = done.stdout.splitlines()
    assert Path(folder) == tmp_path / "edgellm" / "device" / "data"
    assert name == "Raspberry Pi 5, 8 GB"
    assert Path(recipes) == tmp_path / "edgellm_export" / "recipes"
    assert found == f"4 {len(list((ROOT / 'export' / 'recipes').glob('*.toml')))}"
