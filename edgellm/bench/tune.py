"""Which way to store a model pays on this machine: size, speed and quality of several bundles.

    Candidate, … ── export ──▶ bundle ── bench.speed, bench.quality ──▶ Measured, … ── dominated

Every bundle is compared with the float32 one of the same source. Nothing here measures by itself:
speed is `edgellm bench`'s, quality `edgellm eval`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgellm import hub
from edgellm.bench import quality, speed
from edgellm.bench.quality import LogitsSource, Report, Scope, Window
from edgellm.bench.speed_report import weights_bytes
from edgellm.bundle import manifest
from edgellm.errors import UsageError
from edgellm.hub.convert import CalibrationOptions, Exporter
from edgellm.runtime.options import LoadOptions

REFERENCE = "fp32"
# Bits a weight, head and scales included, of the sizes that are tried when none is named: between
# plain 4 and 8 bits.
TRIED_BITS = (5.0, 6.0)
BYTES_PER_MB = 1e6
# Two medians of five runs differ by this much on a quiet machine without a reason.
SPEED_NOISE = 0.03


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to make a bundle: a precision, calibrated or not, or mixed bits within `target_mb`."""

    precision: str = "int4"
    calibrated: bool = False
    target_mb: float | None = None

    @property
    def name(self) -> str:
        """Fit for a folder."""
        if self.target_mb is not None:
            return f"{self.target_mb:g}mb"
        name = Path(self.precision).stem  # a recipe may be a file
        return f"{name}-calibrated" if self.calibrated else name


@dataclass(frozen=True, slots=True)
class Measured:
    """What a candidate takes and gives; `report` compares it with the float32 bundle."""

    name: str
    recipe: str
    bytes: int
    tokens_per_s: float
    report: Report

    def to_json(self) -> dict[str, Any]:
        fields = {"name": self.name, "recipe": self.recipe, "bytes": self.bytes}
        return fields | {"tokens_per_s": self.tokens_per_s, **asdict(self.report)}


def defaults(parameters: int) -> tuple[Candidate, ...]:
    """A handful: both plain precisions, 4 bits calibrated, and two sizes between 4 and 8 bits."""
    sizes = [round(bits * parameters / 8 / BYTES_PER_MB, 1) for bits in TRIED_BITS]
    mixed = [Candidate(target_mb=size) for size in sizes if size > 0]
    return Candidate("int8"), Candidate("int4"), Candidate("int4", True), *mixed


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes bundles of `source` in `folder`; one that is there already is taken as it is.

    Statistics for all calibrated ones are captured once, in `calibration.cache`.
    """

    source: str
    folder: Path
    store: hub.Store
    calibration: CalibrationOptions
    offline: bool
    progress: hub.Progress

    def make(self, candidate: Candidate) -> Path:
        """The candidate's bundle; errors as of `edgellm export`."""
        out = self.folder / candidate.name
        if (out / manifest.MANIFEST_NAME).is_file():
            return out
        self.progress.notice(f"making {candidate.name}")
        exporter = Exporter(self.progress, self._options(candidate))
        options = hub.HubOptions(self.offline, candidate.precision)
        return hub.export_to(out, self.source, self.store, options, self.progress, exporter)

    def _options(self, candidate: Candidate) -> CalibrationOptions | None:
        if not candidate.calibrated and candidate.target_mb is None:
            return None
        given = self.calibration
        return CalibrationOptions(given.cache, given.text, given.tokens, candidate.target_mb)


@dataclass(frozen=True, slots=True)
class Ruler:
    """What every bundle is measured with."""

    plan: speed.Plan
    scope: Scope
    text: str
    options: LoadOptions

    def windows(self, reference: LogitsSource) -> list[Window]:
        return quality.text_windows(self.text, self.scope, [reference])

    def tokens_per_s(self, folder: Path) -> float:
        """Decoding speed of the bundle, alone in memory: the median."""
        loaded = speed.load(str(folder), self.plan, self.options)
        (row,) = speed.measure(loaded.session, loaded.bundle.manifest.shape, self.plan)
        return row.tokens_per_s.median


def measured(folder: Path, tokens_per_s: float, report: Report) -> Measured:
    """All that is known of the bundle in `folder`."""
    found = manifest.read(folder)
    recipe = str(found.recipe.get("name", ""))
    return Measured(folder.name, recipe, weights_bytes(found), tokens_per_s, report)


def decoding(tokens: int, repetitions: int) -> speed.Plan:
    """The one test of a tuning run: decoding from an empty cache."""
    if tokens < 1:
        raise UsageError(f"the number of tokens to decode must be 1 or more, got {tokens}")
    return speed.Plan((), (tokens,), (0,), repetitions)


def dominated(rows: Sequence[Measured]) -> dict[str, str]:
    """For each row that nobody should take, the name of one that is better."""
    return {row.name: better.name for row in rows for better in list(_better(row, rows))[:1]}


def _better(row: Measured, rows: Sequence[Measured]) -> Iterator[Measured]:
    """Rows that are no larger, no slower beyond noise, no further from float32; and not equal."""
    for other in rows:
        kl, limit = other.report.kl_mean or 0.0, row.report.kl_mean or 0.0
        no_worse = other.bytes <= row.bytes and kl <= limit
        fast = other.tokens_per_s >= row.tokens_per_s * (1 - SPEED_NOISE)
        if no_worse and fast and (other.bytes, kl) != (row.bytes, limit):
            yield other
