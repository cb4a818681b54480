"""Importing does nothing, and help answers at once: what a process loads is counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"numpy", "onnxruntime", "onnx", "onnx_ir", "tokenizers", "gguf", "torch", "jinja2"}
HEAVY |= {"huggingface_hub", "prompt_toolkit", "tqdm", "psutil", "httpcore"}

# Prints the loaded modules after running what it is given.
LOADED = "import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"

# Records who reads the environment, opens a file, a socket or a process, from inside the project.
WATCHED = """
import importlib, json, os, sys

PACKAGES = ("edgellm", "edgellm_export")
acts = []

def caller():
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name not in ("os", "_collections_abc", "collections.abc"):
            # The import system opens the module's own files.
            return "" if "importlib" in name else name
        frame = frame.f_back
    return ""

class Environment(type(os.environ)):
    def __getitem__(self, key):
        if caller().split(".")[0] in PACKAGES:
            acts.append(f"{caller()} reads ${key}")
        return super().__getitem__(key)

os.environ.__class__ = Environment

def hook(event, args):
    wanted = ("open", "subprocess.Popen", "socket.connect", "os.mkdir", "os.putenv", "os.listdir")
    if event in wanted and caller().split(".")[0] in PACKAGES:
        acts.append(f"{caller()}: {event} {args[:1]}")

sys.addaudithook(hook)
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] in PACKAGES:
            raise
        acts.append(f"{name} needs {error.name} at import")
print(json.dumps(acts))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def loaded(code: str) -> set[str]:
    """Top-level names of what a fresh interpreter holds after `code`."""
    modules = json.loads(run("-c", LOADED.format(code=code)).stderr.strip().splitlines()[-1])
    return {name.split(".")[0] for name in modules}


def modules(*folders: str) -> list[str]:
    names = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to((ROOT / folder).parent).with_suffix("").parts
            names.append(".".join(parts).removesuffix(".__init__"))
    return [name for name in names if not name.endswith("__main__")]


def test_help_loads_nothing_heavy() -> None:
    done = run("-X", "importtime", "-m", "edgellm", "--help")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not HEAVY & imported
    assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_top_level_questions_load_nothing_heavy(flag: str) -> None:
    code = f"from edgellm.cli import main; assert main([{flag!r}]) == 0"
    assert not HEAVY & loaded(code)


def test_help_of_each_command_loads_neither_numpy_nor_onnxruntime() -> None:
    code = (
        "from edgellm.cli import COMMANDS, cli, main\n"
        "for name in cli.list_commands(None):\n"
        "    assert main([name, '--help']) == 0, name\n"
    )
    assert not {"numpy", "onnxruntime", "tokenizers", "onnx_ir"} & loaded(code)


def test_importing_the_package_loads_nothing_but_itself() -> None:
    assert not (HEAVY | {"click", "tomllib", "urllib"}) & loaded("import edgellm")


def test_the_vocabulary_needs_nothing_heavy() -> None:
    assert not HEAVY & loaded("import edgellm; edgellm.Request.user('hello')")


@pytest.mark.parametrize("packages", [["edgellm"], ["export/edgellm_export"]])
def test_importing_any_module_reads_no_environment_and_opens_nothing(packages: list[str]) -> None:
    done = run("-c", WATCHED, json.dumps(modules(*packages)))
    assert json.loads(done.stdout) == []


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    package = tmp_path / "edgellm_export"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, subprocess\nos.environ.get('HOME')\nopen(os.devnull)\nos.getenv('PATH')\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + WATCHED
    acts = json.loads(run("-W", "ignore", "-c", code, '["edgellm_export"]').stdout)
    assert len(acts) == 3


def test_the_facade_names_what_exists() -> None:
    import edgellm

    missing = [name for name in edgellm.__all__ if not hasattr(edgellm, name)]
    assert not missing
    assert set(edgellm.__all__) <= set(dir(edgellm))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = edgellm.nonsense
