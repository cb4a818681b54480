"""The faults by name, each a way to answer one request. Imported by fault.py alone.

Unless a row says otherwise the answer is the ten words of ANSWER.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

from plain import Exchange

ANSWER = ["one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten"]
USAGE = {"prompt_tokens": 11, "completion_tokens": 10, "total_tokens": 21}
DRIP_S = 0.03

# What came for each fault, and how many of its connections are open.
seen: dict[str, dict[str, Any]] = defaultdict(
    lambda: {"requests": 0, "open": 0, "bytes": 0, "headers": [], "bodies": []}
)


def piece(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {"content": text} if text is not None else {}
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


async def say(exchange: Exchange, pieces: list[str], finish: str | None = "stop") -> None:
    for text in pieces:
        await exchange.event(piece(text))
    if finish:
        await exchange.event(piece(finish=finish))


async def close(exchange: Exchange, usage: object = USAGE) -> None:
    if usage is not None:
        await exchange.event({"choices": [], "usage": usage})
    await exchange.event("[DONE]")
    await exchange.end()


async def ok(exchange: Exchange) -> None:
    await exchange.event_stream()
    await say(exchange, ANSWER)
    await close(exchange)


def refuse(status: int, message: str = "no", code: str = "", **headers: str) -> Any:
    async def serve(exchange: Exchange) -> None:
        error = {"message": message, "type": "error", "code": code}
        await exchange.document({"error": error}, status, **headers)

    return serve


def then_ok(times: int, fault: Callable[[Exchange], Awaitable[None]]) -> Any:
    """`fault` for the first requests of a path, then an answer."""

    async def serve(exchange: Exchange) -> None:
        mine = seen[name_of(exchange)]
        await (fault if mine["requests"] <= times else ok)(exchange)

    return serve


async def rate_limited_by_date(exchange: Exchange) -> None:
    now = time.time()
    await exchange.document(
        {"error": {"message": "slow down"}},
        429,
        Date=formatdate(now, usegmt=True),
        Retry_After=formatdate(now + 1, usegmt=True),
    )


async def silent(exchange: Exchange) -> None:
    await exchange.hang()


async def silent_after_head(exchange: Exchange) -> None:
    await exchange.event_stream()
    await exchange.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    await exchange.hang()


async def head_drip(exchange: Exchange) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 2000:
        await exchange.send(bytes([byte]))
        await asyncio.sleep(DRIP_S)


async def pings(exchange: Exchange) -> None:
    await exchange.event_stream()
    while True:
        await exchange.chunk(b": still thinking\n\n")
        await asyncio.sleep(DRIP_S)


async def stall(exchange: Exchange) -> None:
    await exchange.event_stream()
    await say(exchange, ANSWER[:3], None)
    await exchange.hang()


async def drip(exchange: Exchange) -> None:
    """Three words, then a line that never becomes whole, byte by byte."""
    await exchange.event_stream()
    await say(exchange, ANSWER[:3], None)
    await exchange.chunk(b"data: ")
    while True:
        await exchange.chunk(b" ")
        await asyncio.sleep(DRIP_S)


async def slow(exchange: Exchange) -> None:
    """Word after word, without an end."""
    await exchange.event_stream()
    while True:
        await exchange.event(piece(" word"))
        await asyncio.sleep(DRIP_S)


async def cut(exchange: Exchange) -> None:
    await exchange.event_stream()
    await say(exchange, ANSWER[:3], None)


async def reset(exchange: Exchange) -> None:
    await exchange.event_stream()
    await say(exchange, ANSWER[:3], None)
    sock = exchange.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await asyncio.sleep(0.05)
    exchange.writer.transport.abort()


async def cut_before_text(exchange: Exchange) -> None:
    await exchange.event_stream()


async def ends_without_reason(exchange: Exchange) -> None:
    """A clean end of the body, after three words and no finish reason."""
    await exchange.event_stream()
    await say(exchange, ANSWER[:3], None)
    await exchange.end()


async def no_done(exchange: Exchange) -> None:
    """All is said, but the connection stays open."""
    await exchange.event_stream()
    await say(exchange, ANSWER)
    await exchange.hang()


async def malformed(exchange: Exchange) -> None:
    await exchange.event_stream()
    await say(exchange, ANSWER[:4], None)
    await exchange.chunk(b'data: {"choices": [{"delta": {"cont\n\n')
    await exchange.chunk(b"what is this line\n\n")
    await say(exchange, ANSWER[4:])
    await close(exchange)


async def only_malformed(exchange: Exchange) -> None:
    await exchange.event_stream()
    while True:
        await exchange.chunk(b"data: {\n\n" * 50)


async def spread(exchange: Exchange) -> None:
    """Legal and rare: CRLF, event names, one object over three lines, one byte a chunk."""
    await exchange.event_stream()
    whole = json.dumps(piece("".join(ANSWER), "stop"), indent=1)
    lines = "".join(f"data: {line}\r\n" for line in whole.splitlines())
    for byte in f": hello\r\nevent: message\r\nid: 1\r\n{lines}\r\n".encode():
        await exchange.chunk(bytes([byte]))
    await close(exchange)


async def halves(exchange: Exchange) -> None:
    """An emoji as two JSON escapes in two events."""
    await exchange.event_stream()
    await exchange.event('{"choices":[{"delta":{"content":"a\\ud83d"}}]}')
    await exchange.event('{"choices":[{"delta":{"content":"\\ude00b"},"finish_reason":"stop"}]}')
    await close(exchange)


async def echo(exchange: Exchange) -> None:
    """Says the prefix again before it goes on, in pieces of its own, as llama.cpp's server does."""
    prefix = json.loads(exchange.body)["messages"][-1]["content"]
    await exchange.event_stream()
    await say(exchange, [prefix[:5], prefix[5:] + ANSWER[0], *ANSWER[1:]])
    await close(exchange)


async def json_instead(exchange: Exchange) -> None:
    message = {"role": "assistant", "content": "".join(ANSWER)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    await exchange.document({"choices": [choice], "usage": USAGE})


async def web_page(exchange: Exchange) -> None:
    await exchange.document(b"<!doctype html><title>Welcome</title>", Content_Type="text/html")


async def broken_json(exchange: Exchange) -> None:
    await exchange.document(b'{"choices": [')


async def empty(exchange: Exchange) -> None:
    await exchange.event_stream()
    await say(exchange, [])
    await close(exchange, {**USAGE, "completion_tokens": 1})


async def nothing(exchange: Exchange) -> None:
    await exchange.event_stream()
    await close(exchange, None)


async def huge_line(exchange: Exchange) -> None:
    await exchange.event_stream()
    await say(exchange, ANSWER[:3], None)
    await exchange.chunk(b"data: ")
    for _ in range(64):
        await exchange.chunk(b"x" * (1 << 16))
    await exchange.end()


async def gzip_bomb(exchange: Exchange) -> None:
    bomb = gzip.compress(b"\0" * (1 << 24))
    await exchange.document(bomb, Content_Encoding="gzip", Content_Type="text/event-stream")


async def redirect(exchange: Exchange) -> None:
    await exchange.head(307, Location=f"http://127.0.0.2:{exchange.port}/ok/v1/chat/completions")


async def redirect_here(exchange: Exchange) -> None:
    await exchange.head(307, Location="/ok/v1/chat/completions", Content_Length="0")


async def cookies(exchange: Exchange) -> None:
    await exchange.head(
        Content_Type="text/event-stream",
        Transfer_Encoding="chunked",
        Set_Cookie="track=me; Path=/; Max-Age=99999",
    )
    await say(exchange, ANSWER)
    await close(exchange)


def usage(value: object) -> Any:
    async def serve(exchange: Exchange) -> None:
        await exchange.event_stream()
        await say(exchange, ANSWER)
        await close(exchange, value)

    return serve


def finish(word: str, pieces: list[str]) -> Any:
    async def serve(exchange: Exchange) -> None:
        await exchange.event_stream()
        await say(exchange, pieces, word)
        await close(exchange)

    return serve


def error_event(message: str, pieces: list[str]) -> Any:
    async def serve(exchange: Exchange) -> None:
        await exchange.event_stream()
        await say(exchange, pieces, None)
        await exchange.event({"error": {"message": message, "code": 503}})
        await exchange.end()

    return serve


async def echo_key(exchange: Exchange) -> None:
    """Some servers quote the key they refuse, and the text, with colours for the terminal."""
    message = f"bad\x1b[31m key {exchange.headers.get('authorization')}\r\n for {'text ' * 400}"
    await exchange.document({"error": {"message": message}}, 401)


async def tools(exchange: Exchange) -> None:
    await exchange.event_stream()
    call = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    await exchange.event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    await close(exchange)


async def reasoning(exchange: Exchange) -> None:
    await exchange.event_stream()
    for _ in range(20):
        await exchange.event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm "}}]})
        await asyncio.sleep(DRIP_S)
    await say(exchange, ANSWER)
    await close(exchange, {**USAGE, "completion_tokens": 3000})


FAULTS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "ok": ok,
    "400-context": refuse(400, "maximum context length is 8192", "context_length_exceeded"),
    "400-parameter": refuse(400, "unknown parameter: stream_options"),
    "401": refuse(401, "bad key", "invalid_api_key"),
    "401-echo": echo_key,
    "402": refuse(402, "pay first"),
    "404-model": refuse(404, "no such model", "model_not_found"),
    "413": refuse(413, "too large"),
    "429": refuse(429, "slow down"),
    "429-1s": then_ok(1, refuse(429, "slow down", Retry_After="1")),
    "429-60s": refuse(429, "slow down", Retry_After="60"),
    "429-date": then_ok(1, rate_limited_by_date),
    "429-quota": refuse(429, "no money", "insufficient_quota"),
    "500": refuse(500),
    "500-twice": then_ok(2, refuse(500)),
    "503-once": then_ok(1, refuse(503)),
    "empty": empty,
    "nothing": nothing,
    "silent": silent,
    "silent-after-head": silent_after_head,
    "head-drip": head_drip,
    "pings": pings,
    "stall": stall,
    "drip": drip,
    "slow": slow,
    "cut": cut,
    "reset": reset,
    "cut-before-text": cut_before_text,
    "cut-once": then_ok(1, cut_before_text),
    "ends-without-reason": ends_without_reason,
    "no-done": no_done,
    "malformed": malformed,
    "only-malformed": only_malformed,
    "spread": spread,
    "halves": halves,
    "echo": echo,
    "json": json_instead,
    "web-page": web_page,
    "broken-json": broken_json,
    "huge-line": huge_line,
    "gzip-bomb": gzip_bomb,
    "redirect": redirect,
    "redirect-here": redirect_here,
    "cookies": cookies,
    "usage-none": usage(None),
    "usage-negative": usage({"prompt_tokens": -1, "completion_tokens": 5}),
    "usage-text": usage({"prompt_tokens": "11", "completion_tokens": "10"}),
    "usage-zero": usage({"prompt_tokens": 11, "completion_tokens": 0}),
    "usage-more-than-allowed": usage({"prompt_tokens": 11, "completion_tokens": 999_999}),
    "finish-length": finish("length", ANSWER),
    "finish-unknown": finish("because", ANSWER),
    "finish-filter": finish("content_filter", []),
    "finish-filter-late": finish("content_filter", ANSWER[:3]),
    "error-event": error_event("overloaded", []),
    "error-event-once": then_ok(1, error_event("overloaded", [])),
    "error-event-late": error_event("overloaded", ANSWER[:3]),
    "error-event-context": error_event("prompt is too long: 9000 tokens", []),
    "tools": tools,
    "reasoning": reasoning,
}


def name_of(exchange: Exchange) -> str:
    """The first part of the path. It may be FAULT~ANYTHING, to be counted by itself."""
    return exchange.path.split("/")[1] if exchange.path.count("/") >= 2 else ""
