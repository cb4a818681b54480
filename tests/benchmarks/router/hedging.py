"""First tokens under hedge: what router_hedge.py measures, as rows of the target table.

Real: the local model, HTTP, the server's process, the counts of tokens. Simulated: when the server
says its first token, log-normal as recorded first-token times are (DiSCo, arXiv:2502.11417).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import router_hedge
from launch import serve_scripted, write_answers
from target_rows import Job, Row, least, missing, most

from edgellm.routing.options import RouterOptions
from edgellm.runtime.local import load

TTFT_MS, SIGMA = 150.0, 0.8
FASTER = (least(0.2, "-20 %"), least(0.4, "-40 %"))
EXTRA = most(0.15, "≤ +15 %")
SHIPPED = RouterOptions("hedge")
SINGLE: dict[str, RouterOptions] = {
    "local-only": RouterOptions("local-only"),
    "remote-only": RouterOptions("remote-only"),
}
# The other side starts when the first token is later than this share of those before. It bounds
# what can be won: with 0.9, one answer in ten is late already when the other side begins.
QUANTILES = (SHIPPED.hedge_quantile, 0.6)


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds to the first piece, and what the remote was paid for."""

    p50_ms: float
    p95_ms: float
    asked: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.p50_ms:.0f} / {self.p95_ms:.0f} ms"


def measure(bundle: Path, options: RouterOptions, asked: list[str]) -> Times:
    delays = ("--ttft-ms", str(TTFT_MS), "--ttft-sigma", str(SIGMA))
    with tempfile.TemporaryDirectory() as folder, load(str(bundle.resolve())) as model:
        key = write_answers(Path(folder) / "key", [(text, "blue " * 8, 0.5) for text in asked])
        with serve_scripted(key, "--accuracy", "1", *delays) as server:
            taken = sorted(router_hedge.measure(model, server.url(), options, asked))
            seen = server.state()
    tokens = seen["prompt_tokens"] + seen["completion_tokens"]
    return Times(taken[len(taken) // 2], taken[int(0.95 * len(taken))], seen["requests"], tokens)


def rows(job: Job) -> Iterator[Row]:
    """Part `hedge` of the target table."""
    metric = "p95 of the first token against the best single side"
    if job.bundle is None:
        yield missing("hedge", metric, "needs --bundle", *FASTER)
        return
    asked = router_hedge.prompts(job.requests + router_hedge.WARM_UP)
    # The long prompts come anywhere, so that the delay is learnt from all lengths.
    random.Random(1).shuffle(asked)
    single = {name: measure(job.bundle, options, asked) for name, options in SINGLE.items()}
    for quantile in QUANTILES:
        options = replace(SHIPPED, hedge_quantile=quantile)
        name = "as shipped, " if options == SHIPPED else ""
        hedge = measure(job.bundle, options, asked)
        yield from _rows(f"{name}quantile {quantile:g}", hedge, single, len(asked))


def _rows(name: str, hedge: Times, single: dict[str, Times], asked: int) -> Iterator[Row]:
    gain = 1 - hedge.p95_ms / min(side.p95_ms for side in single.values())
    remote = single["remote-only"]
    real = "local model, HTTP, token counts"
    said = f"remote first tokens (log-normal, median {TTFT_MS:.0f} ms, sigma {SIGMA})"
    sides = "; ".join(f"{side} {times}" for side, times in {**single, "hedge": hedge}.items())
    text = f"{-gain:+.1%} ({sides}; p50 / p95 of {asked - router_hedge.WARM_UP})"
    yield Row("hedge", f"p95 of the first token against the best side: {name}", text, gain,
              *FASTER, real, said)  # fmt: skip
    extra = hedge.tokens / max(remote.tokens, 1) - 1
    text = (
        f"{extra:+.1%} against remote-only ({hedge.tokens} and {remote.tokens} tokens, against "
        f"none under local-only; {hedge.asked} of {asked} prompts, the long ones)"
    )
    yield Row("hedge", f"extra remote tokens: {name}", text, extra, EXTRA, EXTRA, real, said)
