"""A file server on loopback that misbehaves on request, and small stand-ins."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from edgellm.bundle import manifest
from edgellm.bundle.manifest import FileRecord, Graph, Manifest, Shape, Source
from edgellm.hub.convert import Conversion
from edgellm.hub.progress import Meter


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; the default is nothing."""

    cut_at: int | None = None  # close after this byte of the file
    status: int | None = None  # answer this instead
    ignore_range: bool = False  # 200 and the whole file
    wrong_start: bool = False  # 206, but from another place
    stall_at: int | None = None  # stop sending, keep the connection open
    redirect: str | None = None
    body: bytes | None = None  # serve this instead of the file


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


@dataclass
class Server:
    """`faults` are used up one a request; `chunk_pause` slows every 64 KiB down."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    sent_bytes: int = 0
    chunk_pause: float = 0.0
    no_length: bool = False
    on_request: Callable[[int], None] = lambda count: None
    open: threading.Event = field(default_factory=threading.Event)

    def ranges(self) -> list[str | None]:
        return [asked.headers.get("range") for asked in self.asked]

    def wait_for(self, sent_bytes: int) -> None:
        deadline = time.monotonic() + 30
        while self.sent_bytes < sent_bytes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {self.sent_bytes} bytes were asked for")
            time.sleep(0.005)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            server.asked.append(Asked(path, {k.lower(): v for k, v in self.headers.items()}))
            server.on_request(len(server.asked))
            fault = server.faults.pop(0) if server.faults else Fault()
            if fault.redirect or fault.status or path not in server.files:
                self.plain(fault)
                return
            with suppress(ConnectionError):
                self.serve(path, fault)

        def plain(self, fault: Fault) -> None:
            self.send_response(302 if fault.redirect else fault.status or 404)
            if fault.redirect:
                self.send_header("Location", fault.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def serve(self, path: str, fault: Fault) -> None:
            body = server.files[path] if fault.body is None else fault.body
            etag = server.etags.get(path)
            start = self.start_byte(etag, fault)
            if start > 0 and start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                said = start + 1 if fault.wrong_start else start
                self.send_header("Content-Range", f"bytes {said}-{len(body) - 1}/{len(body)}")
            if etag:
                self.send_header("ETag", etag)
            if path.endswith("/"):
                self.send_header("Content-Type", "text/html")
            if not server.no_length:
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.send_body(body, start, fault)

        def start_byte(self, etag: str | None, fault: Fault) -> int:
            asked = self.headers.get("Range")
            condition = self.headers.get("If-Range")
            if asked is None or fault.ignore_range or condition not in (None, etag):
                return 0
            return int(asked.removeprefix("bytes=").rstrip("-"))

        def send_body(self, body: bytes, start: int, fault: Fault) -> None:
            end = len(body) if fault.cut_at is None else min(fault.cut_at, len(body))
            end = end if fault.stall_at is None else min(fault.stall_at, end)
            for at in range(start, end, 1 << 16):
                piece = body[at : min(at + (1 << 16), end)]
                self.wfile.write(piece)
                server.sent_bytes += len(piece)
                time.sleep(server.chunk_pause)
            if fault.stall_at is not None:
                server.open.wait(30)
            if end < len(body):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is what these tests are about."""


@contextmanager
def serving() -> Iterator[Callable[[], Server]]:
    """Starts servers; all are stopped at the end of the test."""
    running: list[tuple[_QuietServer, Server, threading.Thread]] = []

    def start() -> Server:
        state = Server()
        http = _QuietServer(("127.0.0.1", 0), _handler(state))
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((http, state, thread))
        return state

    yield start
    for http, state, thread in running:
        state.open.set()
        http.shutdown()
        http.server_close()
        thread.join()


class Notes:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[int] = []

    def notice(self, line: str) -> None:
        self.lines.append(line)

    def meter(self, label: str, total_bytes: int | None) -> AbstractContextManager[Meter]:
        return nullcontext(self.done.append)

    def steps(self, label: str, total: int) -> AbstractContextManager[Meter]:
        return nullcontext(self.done.append)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_bundle(folder: Path, name: str, origin: Source, weights: bytes = b"weights") -> None:
    """A folder with a true manifest: enough for the store, not for a model."""
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx/model.onnx").write_bytes(b"graph")
    (folder / "onnx/model.onnx_data").write_bytes(weights)
    files = {
        path: FileRecord((folder / path).stat().st_size, sha256((folder / path).read_bytes()))
        for path in ("onnx/model.onnx", "onnx/model.onnx_data")
    }
    made = Manifest(
        name=name,
        producer="edgellm test",
        source=origin,
        shape=Shape("llama", 2, 4, 2, 8, 32, 256, 512, 100_000),
        graphs={"q4": Graph("portable", "onnx/model.onnx", "onnx/model.onnx_data")},
        files=files,
        recipe={"precision": "exact"},
        self_check={"max_difference": 1.5e-7, "passed": True},
    )
    (folder / manifest.MANIFEST_NAME).write_text(made.to_json())


class Packer:
    """A Converter that copies its source and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, str, str | None]] = []
        self.adapters: list[Path | None] = []

    def convert(self, job: Conversion, out: Path) -> None:
        self.asked.append((job.source, job.name, job.precision))
        self.adapters.append(job.lora)
        weights = job.source if job.source.is_file() else job.source / "model.safetensors"
        make_bundle(out, job.name, job.origin, weights.read_bytes())


def start_python(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A second process that sees the same packages as this one and the tests' stand-ins."""
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    command: Sequence[str] = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
