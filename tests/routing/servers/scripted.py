"""A remote with a declared accuracy: python scripted.py ANSWERS.jsonl --accuracy 0.9 --rho 0.5

What is simulated: how good it is, its price, its delays. What is real: HTTP, streaming, the counts
of tokens and bytes. It alone holds the answers, found by the hash of the last user message.

ANSWERS.jsonl: {"prompt_sha256": hex, "answer": text, "wrong": text, "difficulty": 0 … 1} a line;
`difficulty` is what the local model finds hard, `wrong` may be missing. Exactly
round((1 - accuracy) · N) answers are wrong. Which ones is drawn with weight
(1 - rho) + rho · difficulty / mean: with rho 0 errors fall anywhere, with rho 1 on what is hard.

Prints one JSON line with its ports; a GET on the `side` port tells what was received and billed.
Ends when its stdin is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import plain
from plain import Exchange

UNKNOWN = "I have no answer to this."


@dataclass
class Counts:
    """`received_bytes` is everything that reached the port, whole requests or not."""

    connections: int = 0
    requests: int = 0
    received_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_by_client: int = 0
    open: int = 0
    unknown_prompts: int = 0
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Key:
    """Answers by prompt hash, and which of them this remote gets wrong."""

    rows: dict[str, dict[str, Any]]
    wrong: frozenset[str]

    def answer(self, prompt: str) -> str | None:
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        if digest not in self.rows:
            return None
        row = self.rows[digest]
        if digest not in self.wrong:
            return str(row["answer"])
        return str(row.get("wrong") or f"not {row['answer'][::-1]}")


def read_key(path: Path, accuracy: float, rho: float, seed: int) -> Key:
    """The key of a file. Errors are a weighted sample without replacement: the smallest of
    Exp(weight) draws (Efraimidis and Spirakis, 2006), one draw a prompt, fixed by seed and hash."""
    rows = {row["prompt_sha256"]: row for row in map(json.loads, path.read_text().splitlines())}
    hard = {name: float(row.get("difficulty", 0.5)) for name, row in rows.items()}
    mean = sum(hard.values()) / max(len(hard), 1) or 1.0

    def draw(name: str) -> float:
        weight = (1 - rho) + rho * hard[name] / mean
        uniform = random.Random(f"{seed}:{name}").random()
        return -math.log(1 - uniform) / weight if weight > 0 else math.inf

    return Key(rows, frozenset(sorted(rows, key=draw)[: round((1 - accuracy) * len(rows))]))


class Remote:
    def __init__(self, key: Key, arguments: argparse.Namespace) -> None:
        self.key = key
        self.counts = Counts()
        self.arguments = arguments
        self.random = random.Random(arguments.seed)

    def received(self, size: int) -> None:
        self.counts.received_bytes += size

    def connected(self) -> None:
        self.counts.connections += 1

    async def serve(self, exchange: Exchange) -> None:
        self.counts.requests += 1
        self.counts.keys.append(exchange.headers.get("authorization", ""))
        self.counts.open += 1
        try:
            await self.reply(exchange, json.loads(exchange.body))
        except ConnectionError:
            self.counts.cut_by_client += 1
            raise
        finally:
            self.counts.open -= 1

    async def reply(self, exchange: Exchange, body: dict[str, Any]) -> None:
        pieces, finish = self.compose(body)
        prompt_tokens = plain.count_prompt(body)
        self.counts.prompt_tokens += prompt_tokens
        await asyncio.sleep(self.first_token_s())
        chat = "messages" in body
        if not body.get("stream"):
            self.counts.completion_tokens += len(pieces)
            await exchange.document(self.whole(pieces, finish, prompt_tokens, chat))
            return
        await exchange.event_stream()
        for text in pieces:
            # Billed when it is made, as vendors do, and not when it is read.
            self.counts.completion_tokens += 1
            await exchange.event(self.chunk(text, None, chat))
            await asyncio.sleep(self.arguments.token_ms / 1e3)
            if exchange.reader.at_eof():
                raise ConnectionError("the client has gone")
        await exchange.event(self.chunk("", finish, chat))
        if (body.get("stream_options") or {}).get("include_usage"):
            await exchange.event({"choices": [], "usage": usage(prompt_tokens, len(pieces))})
        await exchange.event("[DONE]")
        await exchange.end()

    def compose(self, body: dict[str, Any]) -> tuple[list[str], str]:
        """The tokens of the answer within its limits, and why it ends. An assistant's last message
        is gone on from where the answer begins like it."""
        messages = body.get("messages") or [{"role": "user", "content": body.get("prompt", "")}]
        asked = [m["content"] for m in messages if m["role"] == "user"]
        text = self.key.answer(asked[-1] if asked else "")
        if text is None:
            self.counts.unknown_prompts += 1
            text = UNKNOWN
        if messages[-1]["role"] == "assistant" and text.startswith(messages[-1]["content"]):
            text = text[len(messages[-1]["content"]) :]
        for stop in body.get("stop") or ():
            text = text.partition(stop)[0]
        pieces = plain.words(text)
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(pieces)
        return pieces[:limit], "length" if len(pieces) > limit else "stop"

    def first_token_s(self) -> float:
        """Log-normal, as recorded first-token times are (arXiv:2502.11417)."""
        median = self.arguments.ttft_ms / 1e3
        return median * math.exp(self.random.gauss(0.0, self.arguments.ttft_sigma)) if median else 0

    def chunk(self, text: str, finish: str | None, chat: bool) -> dict[str, Any]:
        said = {"delta": {"content": text}} if chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": finish}
        return {"id": "scripted", "model": "scripted", "choices": [choice]}

    def whole(self, pieces: list[str], finish: str, prompt: int, chat: bool) -> dict[str, Any]:
        text = "".join(pieces)
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": finish}
        return {"id": "scripted", "choices": [choice], "usage": usage(prompt, len(pieces))}


def usage(prompt: int, completion: int) -> dict[str, int]:
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("answers", type=Path)
    parser.add_argument("--accuracy", type=float, default=0.9)
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=0.0, help="the median")
    parser.add_argument("--ttft-sigma", type=float, default=0.5)
    parser.add_argument("--token-ms", type=float, default=0.0)
    arguments = parser.parse_args()
    key = read_key(arguments.answers, arguments.accuracy, arguments.rho, arguments.seed)
    remote = Remote(key, arguments)
    port = await plain.listen(remote.serve, remote.received, remote.connected)
    side = await plain.listen_for_questions(lambda: asdict(remote.counts))
    plain.announce(main=port, side=side)
    await plain.until_parent_ends()


if __name__ == "__main__":
    asyncio.run(main())
