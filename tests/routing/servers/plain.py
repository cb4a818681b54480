"""The least of an HTTP/1.1 server, so that a test may send any bytes and count every byte it gets.

Each connection serves one request. What is counted is on a second port, so that asking for the
counts is not counted.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

HEAD_LIMIT_BYTES = 1 << 16
CHUNK_BYTES = 1 << 16


@dataclass
class Exchange:
    """One request, and the connection to answer it on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: Callable[[int], None]
    line: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.line.split(" ")[1] if self.line.count(" ") == 2 else ""

    @property
    def port(self) -> int:
        """Where this server listens."""
        return int(self.writer.get_extra_info("sockname")[1])

    async def read(self) -> bool:
        """Whether a whole request came; every byte is told to `received` as it comes."""
        data = b""
        while b"\r\n\r\n" not in data and len(data) < HEAD_LIMIT_BYTES:
            if not (data := data + await self._more()) or self.reader.at_eof():
                return False
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.line, *rest = head.decode("latin-1").split("\r\n")
        pairs = (each.partition(":") for each in rest)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(self.headers.get("content-length", "0"))
        while len(self.body) < length:
            if not (more := await self._more()):
                return False
            self.body += more
        return True

    async def _more(self) -> bytes:
        data = await self.reader.read(CHUNK_BYTES)
        self.received(len(data))
        return data

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, **headers: str) -> None:
        """A head without a length: the body ends with the connection."""
        lines = [f"HTTP/1.1 {status} Any", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def event_stream(self) -> None:
        """The head of an event stream in chunks, so that a client knows an early end."""
        await self.head(Content_Type="text/event-stream", Transfer_Encoding="chunked")

    async def event(self, value: object) -> None:
        """One event, as a chunk of its own; a str goes out as it is."""
        text = value if isinstance(value, str) else json.dumps(value)
        await self.chunk(f"data: {text}\n\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def document(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = {"Content_Type": "application/json", **headers}
        await self.head(status, **headers, Content_Length=str(len(body)))
        await self.send(body)

    async def hang(self) -> None:
        """Says nothing more until the client goes away."""
        while await self.reader.read(CHUNK_BYTES):
            pass


Serve = Callable[[Exchange], Awaitable[None]]


async def listen(
    serve: Serve,
    received: Callable[[int], None] = lambda count: None,
    connected: Callable[[], None] = lambda: None,
    **options: Any,
) -> int:
    """The port of a server on loopback that answers each connection with `serve`."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected()
        exchange = Exchange(reader, writer, received)
        # A client that hangs up is what half of these tests are about.
        with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            if await exchange.read():
                await serve(exchange)
        with suppress(ConnectionError, TimeoutError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, **options)
    return int(server.sockets[0].getsockname()[1])


async def listen_for_questions(state: Callable[[], object]) -> int:
    """The side port: any GET answers with `state` as JSON."""

    async def serve(exchange: Exchange) -> None:
        await exchange.document(state())

    return await listen(serve)


def announce(**ports: int) -> None:
    """Tells the parent process where to knock."""
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()


async def until_parent_ends() -> None:
    """Returns when stdin is closed: no server outlives the test that started it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, lambda: sys.stdin.buffer.read1(1) or ended.set())
    await ended.wait()


def words(text: str) -> list[str]:
    """The tokens of these servers: a word or a mark, with the space before it."""
    return re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text)


def count_prompt(body: dict[str, Any]) -> int:
    """Prompt tokens, with 4 for the frame of each message."""
    if "prompt" in body:
        return len(words(body["prompt"]))
    return sum(len(words(message["content"])) + 4 for message in body["messages"])
