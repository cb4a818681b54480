"""A server that misbehaves in a named way: python fault.py, then http://127.0.0.1:PORT/NAME/v1.

Prints one JSON line with its ports; a GET on the `side` port tells, for each name, how many
requests came, what they held, and how many connections are still open. Ends with its stdin.
The names are in misbehave.py; more faults are ports of their own: refusing, hanging, silent,
plaintext.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import plain
from misbehave import FAULTS, name_of, seen, silent
from plain import Exchange

HERE = Path(__file__).parent


async def serve(exchange: Exchange) -> None:
    mine = seen[name_of(exchange)]
    mine["requests"] += 1
    mine["open"] += 1
    mine["headers"].append(exchange.headers)
    mine["bodies"].append(exchange.body.decode("utf-8", "replace"))
    try:
        await FAULTS[name_of(exchange).partition("~")[0]](exchange)
    finally:
        mine["open"] -= 1


async def plaintext_port() -> int:
    """A port that answers at once and in the clear, whatever it is told."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 No TLS here\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    return int(server.sockets[0].getsockname()[1])


def hanging_port() -> tuple[int, list[socket.socket]]:
    """A port whose queue is full: Linux lets further connections wait for an answer."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    kept = [server]
    for _ in range(4):
        waiting = socket.socket()
        waiting.setblocking(False)
        waiting.connect_ex(server.getsockname())
        kept.append(waiting)
    return server.getsockname()[1], kept


def refusing_port() -> tuple[int, socket.socket]:
    """A port that is taken, so that nobody else gets it, and on which nobody listens."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1], sock


async def main() -> None:
    def count(size: int) -> None:
        seen["*"]["bytes"] += size

    def count_connection() -> None:
        seen["*"]["connections"] = seen["*"].get("connections", 0) + 1

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(HERE / "selfsigned.pem")
    ports = {"main": await plain.listen(serve, count, count_connection)}
    ports["tls"] = await plain.listen(serve, count, count_connection, ssl=context)
    ports["silent"] = await plain.listen(silent, count, count_connection)
    ports["plaintext"] = await plaintext_port()
    ports["hanging"], kept = hanging_port()
    ports["refusing"], taken = refusing_port()
    ports["side"] = await plain.listen_for_questions(lambda: seen)
    plain.announce(**ports)
    await plain.until_parent_ends()
    for sock in (*kept, taken):
        sock.close()


if __name__ == "__main__":
    asyncio.run(main())
