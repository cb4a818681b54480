"""What edgellm promises against its peers, and whether a run kept it. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contenders import Key

EXACT, INT4 = "edgellm exact", "edgellm int4_block128"
# The same without --fast-prefill.
EXACT_PLAIN, INT4_PLAIN = f"{EXACT}, plain", f"{INT4}, plain"
LLAMA_Q4_1, LLAMA_Q4_0 = "llama-bench Q4_1", "llama-bench Q4_0"
LLAMA_Q4_0_Q8 = "llama-bench Q4_0, Q8_0 embedding"
GENAI = "onnxruntime-genai int4"

Samples = Mapping[str, Mapping[Key, Sequence[float]]]
"""Contender → test → one sample or more a round, in order."""


@dataclass(frozen=True, slots=True)
class Target:
    """`ours` shall be at least `ratio` times the fastest of `peers` at that test."""

    ours: str
    peers: tuple[str, ...]
    test: str
    depth: int
    ratio: float


TARGETS = (
    Target(EXACT, (LLAMA_Q4_1,), "tg128", 0, 1.2),
    Target(EXACT, (LLAMA_Q4_1,), "pp512", 0, 2.5),
    Target(INT4, (LLAMA_Q4_0, LLAMA_Q4_0_Q8), "tg128", 0, 0.95),
    Target(INT4, (LLAMA_Q4_0, LLAMA_Q4_0_Q8), "tg128", 512, 1.1),
    Target(INT4, (LLAMA_Q4_0, LLAMA_Q4_0_Q8), "pp512", 0, 0.9),
    Target(INT4, (GENAI,), "tg128", 0, 1.5),
    Target(INT4, (GENAI,), "tg128", 512, 1.5),
    Target(INT4, (GENAI,), "pp512", 0, 2.0),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Medians in tokens per second. `lowest` and `highest` are the ratio's within one round.

    All None when a contender was not there.
    """

    target: Target
    peer: str | None = None
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None

    @property
    def word(self) -> str:
        if self.ratio is None:
            return "not measured"
        return "met" if self.ratio >= self.target.ratio else "MISSED"


def verdict(target: Target, samples: Samples) -> Verdict:
    """The ratio of medians over all rounds, against the peer with the best median."""
    key = (target.test, target.depth)
    ours = samples.get(target.ours, {}).get(key)
    peers = {name: samples[name][key] for name in target.peers if key in samples.get(name, {})}
    if not ours or len(peers) < len(target.peers):
        return Verdict(target)
    best = max(peers, key=lambda name: statistics.median(peers[name]))
    mine, theirs = statistics.median(ours), statistics.median(peers[best])
    rounds = [a / b for a, b in zip(ours, peers[best], strict=True)]
    return Verdict(target, best, mine, theirs, mine / theirs, min(rounds), max(rounds))


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """A markdown table, a row for each target."""
    lines = [
        "| test | edgellm | t/s | against | t/s | ratio | rounds | target | |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for found in verdicts:
        target = found.target
        peer = found.peer or " or ".join(target.peers)
        spread = "–" if found.lowest is None else f"{found.lowest:.2f}…{found.highest:.2f}"
        cells = [
            named(target.test, target.depth),
            target.ours.removeprefix("edgellm "),
            _number(found.ours, 1),
            peer,
            _number(found.theirs, 1),
            _number(found.ratio, 2),
            spread,
            f"≥ {target.ratio:g}",
            found.word,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sample_table(samples: Samples) -> str:
    """A markdown table: every contender's medians, and the range of its samples."""
    keys = sorted({key for found in samples.values() for key in found}, key=lambda k: (k[1], k[0]))
    head = " | ".join(named(*key) for key in keys)
    lines = [f"| t/s | {head} |", f"| --- |{' ---: |' * len(keys)}"]
    for name, found in samples.items():
        cells = [_spread(found.get(key)) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def named(test: str, depth: int) -> str:
    return f"{test} @ d{depth}" if depth else test


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _spread(samples: Sequence[float] | None) -> str:
    if not samples:
        return "–"
    return f"{statistics.median(samples):.1f} ({min(samples):.0f}…{max(samples):.0f})"
