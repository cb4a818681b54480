"""Environments of other runtimes, made when a test first asks for one and kept in the user's cache.

Each gets its own folder, named after what is in it, so that a changed version is a new folder.
`Unavailable` says in one line why this machine cannot have it; the tests print it and skip.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

INSTALL_SECONDS = 1800
# Newest versions seen together; newer ones are a change of this file, not a surprise in a test.
GENAI = ("onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "numpy")
# optimum-onnx takes transformers below 4.58 only, hence an environment of its own.
OPTIMUM = ("optimum-onnx==0.1.0", "torch==2.13.0", "onnxruntime==1.31.1")
TRANSFORMERS_JS = ("@huggingface/transformers@4.3.1", "puppeteer-core@24.43.1")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Unavailable(Exception):
    """Why this machine cannot have an environment."""


def cache() -> Path:
    """Where environments lie: $EDGELLM_TEST_TARGETS, else a folder of the user's cache."""
    given = os.environ.get("EDGELLM_TEST_TARGETS")
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgellm-tests")) / "targets"


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Those variables and no others; tests have theirs without a package index."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def python(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of a virtual environment with those packages."""

    def make(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)], folder)
        pip = [str(_interpreter(folder)), "-m", "pip", "install", "--quiet", "--no-input"]
        _run([*pip, "--disable-pip-version-check", *requirements], folder)

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return _interpreter(_made(name, (version, *requirements), make))


def node_modules() -> Path:
    """A folder with node_modules: transformers.js, and what drives a browser."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise Unavailable("there is no node with npm on the PATH")

    def make(folder: Path) -> None:
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        # Its install script would fetch CUDA libraries, which nobody here can use.
        skip_cuda = {"ONNXRUNTIME_NODE_INSTALL": "skip"}
        quiet = ["--no-audit", "--no-fund", "--loglevel", "error"]
        _run([npm, "install", *quiet, *TRANSFORMERS_JS], folder, skip_cuda)

    return _made("transformers-js", TRANSFORMERS_JS, make)


def chromium() -> Path:
    """A Chromium on the PATH, or the one that $EDGELLM_TEST_CHROMIUM names."""
    given = os.environ.get("EDGELLM_TEST_CHROMIUM")
    found = [given] if given else [path for name in CHROMIUM_NAMES if (path := shutil.which(name))]
    if not found:
        raise Unavailable(
            f"there is no browser on the PATH ({', '.join(CHROMIUM_NAMES)}); on Debian: "
            "apt install chromium"
        )
    return Path(found[0])


def _made(name: str, content: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled, now or in an earlier run; a half-made one is made anew."""
    digest = hashlib.sha256("\n".join(content).encode()).hexdigest()[:10]
    folder = cache() / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_suffix(".lock")):
        ready = folder / "ready"
        if not ready.is_file():
            shutil.rmtree(folder)
            folder.mkdir()
            make(folder)
            ready.write_text("\n".join(content) + "\n")
    return folder


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(command: Sequence[str], folder: Path, extra: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(extra or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took more than {INSTALL_SECONDS} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        told = " ".join(Path(part).name for part in command[:4])
        raise Unavailable(f"{told} failed with code {done.returncode}: {lines[-1]}")
