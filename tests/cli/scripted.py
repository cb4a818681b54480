"""The command line with a scripted model behind it: `python scripted.py run m "hello"`.

The question decides the answer: "slow" takes seconds, "full" does not fit, "crash" is a bug of
ours, "silent" never says a word, "escape" tries to steer the terminal; anything else is echoed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Self

from edgellm.cli import backend, main
from edgellm.errors import ContextFull, NotFound
from edgellm.runtime.options import LoadOptions
from edgellm.stream import (
    Delta,
    Done,
    Event,
    Memory,
    Placement,
    Request,
    Sampling,
    Start,
    Timings,
    TokenLogprob,
    Usage,
)

FIGURES = {
    "timings": Timings(210.04, 55.0, 900.0, float("inf")),
    "placement": {"CPUExecutionProvider": Placement(412, 1.0)},
    "memory": Memory(82.0, 12.0, 240.0, 251.0),
}


class Scripted:
    """A model that answers by rule and keeps the requests it got."""

    default_sampling = Sampling(temperature=0.2, top_p=0.9)

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[Request] = []
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.closed = True

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]:
        self.requests.append(request)
        question = request.prompt or request.messages[-1].content
        if "full" in question:
            raise ContextFull("the prompt has 900 tokens and the context is 512; shorten it")
        if "crash" in question:
            raise ZeroDivisionError("a bug\nof ours")
        yield Start(self.name, 31, notices=("a notice",) if "notice" in question else ())
        yield from self._answer(request, question)

    def _answer(self, request: Request, question: str) -> Iterator[Event]:
        words = self._words(question)[: request.max_tokens]
        for number, word in enumerate(words):
            rivals = tuple((f"r{rank}", rank, -2.5) for rank in range(request.logprobs or 0))
            asked = request.logprobs is not None
            yield Delta(word, (TokenLogprob(word, number, -0.125, rivals),) if asked else ())
            if "slow" in question:
                time.sleep(0.05)
        reason = "length" if len(words) == request.max_tokens else "stop"
        yield Done(reason, Usage(31, len(words), 7), **FIGURES)

    def _words(self, question: str) -> list[str]:
        if "slow" in question:
            return [f"word{number} " for number in range(200)]
        if "silent" in question:
            time.sleep(10)
        if "escape" in question:
            return ["\x1b[31mred\x1b[0m"]
        return [f"answer {len(self.requests)}", " to <", question, ">"]


def open_scripted(reference: str, options: LoadOptions) -> Scripted:
    """What stands in for the real loader."""
    if reference == "nowhere":
        raise NotFound("no model called nowhere; see edgellm models")
    return Scripted(reference)


if __name__ == "__main__":
    backend.open_backend = open_scripted
    sys.exit(main())
