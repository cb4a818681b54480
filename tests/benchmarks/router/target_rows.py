"""The router's target table: what was promised, what was measured, and in which words that is said.

Pure: nothing here measures anything. A part of the table is a module with `rows(job)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Job:
    """What the parts may use. A part that lacks something says so in its row."""

    record: Path
    precision: str = "exact"
    bundle: Path | None = None
    gguf: Path | None = None
    llama_server: Path | None = None
    fuzz: int = 10_000
    clients: int = 32
    rounds: int = 3
    requests: int = 100
    items: int = 60


@dataclass(frozen=True, slots=True)
class Bound:
    """`text` as the table says it; kept when the value is at least (`low`) or at most (`high`)."""

    text: str
    low: float | None = None
    high: float | None = None

    def keeps(self, value: float) -> bool:
        above = self.low is None or value >= self.low
        return above and (self.high is None or value <= self.high)


def least(limit: float, text: str = "") -> Bound:
    return Bound(text or f"≥ {limit:g}", low=limit)


def most(limit: float, text: str = "") -> Bound:
    return Bound(text or f"≤ {limit:g}", high=limit)


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `value` None: not measured, `measured` says why. `real` and `simulated` say what
    the number rests on."""

    part: str
    metric: str
    measured: str
    value: float | None = None
    passes: Bound | None = None
    ambitious: Bound | None = None
    real: str = ""
    simulated: str = ""

    @property
    def verdict(self) -> str:
        if self.passes is None:
            return "report"
        if self.value is None:
            return "not measured"
        if not self.passes.keeps(self.value):
            return "MISSED"
        return "ambitious" if self.ambitious and self.ambitious.keeps(self.value) else "pass"


HEAD = "| part | metric | pass | ambitious | measured | verdict | real | simulated |"


def table(rows: Sequence[Row]) -> str:
    """Markdown, and a line that counts the verdicts."""
    lines = [HEAD, "|" + "---|" * 8]
    for r in rows:
        cells = (
            r.part, r.metric, r.passes.text if r.passes else "", r.ambitious.text
            if r.ambitious else "", r.measured, r.verdict, r.real, r.simulated,
        )  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    counts = {word: sum(r.verdict == word for r in rows) for word in VERDICTS}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return "\n".join([*lines, "", f"{len(rows)} rows: {said}"])


VERDICTS = ("ambitious", "pass", "MISSED", "not measured", "report")


def to_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [{**asdict(row), "verdict": row.verdict} for row in rows]


def missing(part: str, metric: str, why: str, passes: Bound, ambitious: Bound | None = None) -> Row:
    """A target that could not be measured here."""
    return Row(part, metric, why, None, passes, ambitious)
