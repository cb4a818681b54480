"""First tokens under hedge: what router_hedge.py measures, as rows of the target table.

Real: the local model, HTTP, the server's process, the counts of tokens. Simulated: when the server
says its first token, log-normal as recorded first-token times are (DiSCo, arXiv:2502.11417).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import router_hedge
from launch import serve_scripted, write_answers
from target_rows import Job, Row, least, missing, most

from edgellm.runtime.local import load

TTFT_MS, SIGMA = 150.0, 0.8
FASTER = (least(0.2, "-20 %"), least(0.4, "-40 %"))
EXTRA = most(0.15, "≤ 15 %")


@dataclass(frozen=True, slots=True)
class Policy:
    """Milliseconds to the first piece, and what the remote was paid for."""

    p50_ms: float
    p95_ms: float
    asked: int
    tokens: int


def measure(bundle: Path, name: str, asked: list[str]) -> Policy:
    delays = ("--ttft-ms", str(TTFT_MS), "--ttft-sigma", str(SIGMA))
    with tempfile.TemporaryDirectory() as folder, load(str(bundle.resolve())) as model:
        key = write_answers(Path(folder) / "key", [(text, "blue " * 8, 0.5) for text in asked])
        with serve_scripted(key, "--accuracy", "1", *delays) as server:
            taken = sorted(router_hedge.measure(model, server.url(), name, asked))  # type: ignore[arg-type]
            seen = server.state()
    tokens = seen["prompt_tokens"] + seen["completion_tokens"]
    return Policy(taken[len(taken) // 2], taken[int(0.95 * len(taken))], seen["requests"], tokens)


def rows(job: Job) -> Iterator[Row]:
    """Part `hedge` of the target table."""
    metric = "p95 of the first token against the best single side"
    if job.bundle is None:
        yield missing("hedge", metric, "needs --bundle", *FASTER)
        return
    asked = router_hedge.prompts(job.requests + router_hedge.WARM_UP)
    random.Random(1).shuffle(asked)
    found = {name: measure(job.bundle, name, asked) for name in router_hedge.POLICIES}
    best = min(found["local-only"].p95_ms, found["remote-only"].p95_ms)
    gain = 1 - found["hedge"].p95_ms / best
    times = "; ".join(f"{n} {p.p50_ms:.0f} / {p.p95_ms:.0f} ms" for n, p in found.items())
    real = "local model, HTTP, token counts"
    said = f"remote first tokens (median {TTFT_MS:.0f} ms, sigma {SIGMA})"
    yield Row("hedge", metric, f"{-gain:+.1%} ({times}, p50 / p95 of {job.requests})", gain,
              *FASTER, real, said)  # fmt: skip
    share = found["hedge"].tokens / max(found["remote-only"].tokens, 1)
    text = (
        f"{share:.1%} of what remote-only uses ({found['hedge'].tokens} of "
        f"{found['remote-only'].tokens}; {found['hedge'].asked} of {len(asked)} asked)"
    )
    yield Row("hedge", "remote tokens that local-only would not use", text, share, EXTRA, EXTRA,
              real, said)  # fmt: skip
