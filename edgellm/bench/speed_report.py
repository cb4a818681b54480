"""What `edgellm bench` says: llama-bench's table for people, one document for programs."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgellm.bench.bandwidth import Bandwidth
from edgellm.bench.speed import Rate, Row
from edgellm.bundle.manifest import Manifest
from edgellm.device.detect import Machine

SCHEMA_VERSION = 1
# markdown_printer of llama.cpp's tools/llama-bench/llama-bench.cpp: widths, and - for left.
COLUMNS = (
    ("model", -30),
    ("size", 10),
    ("params", 10),
    ("backend", -10),
    ("threads", 7),
    ("test", 15),
    ("t/s", 20),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured, and on what. `bundle_sha256` is the manifest's."""

    manifest: Manifest
    bundle_sha256: str
    backends: tuple[str, ...]
    threads: int
    machine: Machine
    onnxruntime: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured once. Megabytes are 1e6 bytes."""

    load_ms: float
    first_token_ms: float
    peak_rss_mb: float
    bandwidth: Bandwidth


def document(subject: Subject, rows: Sequence[Row], figures: Figures) -> dict[str, Any]:
    """The contract's fields (`bench --json`), floats with six digits."""
    fields = {
        "schema_version": SCHEMA_VERSION,
        "model": subject.manifest.name,
        "bundle": subject.bundle_sha256,
        "machine": _machine(subject),
        "rows": [
            {
                "test": row.case.name,
                "depth": row.case.depth,
                "threads": subject.threads,
                "tokens_per_s": _rate(row.tokens_per_s),
            }
            for row in rows
        ],
        **asdict(figures),
    }
    rounded: dict[str, Any] = _rounded(fields)
    return rounded


def _machine(subject: Subject) -> dict[str, Any]:
    found = asdict(subject.machine)
    return found | {
        "cpu_features": sorted(subject.machine.cpu_features),
        "python": platform.python_version(),
        "onnxruntime": subject.onnxruntime,
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {"median": rate.median, "min": rate.min, "max": rate.max, "samples": [*rate.samples]}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def heading() -> Iterator[str]:
    """The table's two first lines."""
    yield _line([name for name, _ in COLUMNS])
    rules = ["-" * width if width > 0 else "-" * -width for _, width in COLUMNS]
    yield _line(
        [
            rule[:-1] + ":" if width > 0 else rule
            for rule, (_, width) in zip(rules, COLUMNS, strict=True)
        ]
    )


def line(subject: Subject, row: Row) -> str:
    """One row of the table."""
    manifest, rate, case = subject.manifest, row.tokens_per_s, row.case
    return _line(
        [
            " ".join(filter(None, (manifest.name, manifest.recipe.get("name")))),
            f"{weights_bytes(manifest) / 2**20:.2f} MiB",
            f"{manifest.shape.parameters / 1e6:.2f} M",
            "+".join(name.removesuffix("ExecutionProvider") for name in subject.backends),
            str(subject.threads),
            case.name + (f" @ d{case.depth}" if case.depth else ""),
            f"{rate.median:.2f} ± {rate.spread:.2f}",
        ]
    )


def notes(figures: Figures, rows: Sequence[Row]) -> Iterator[str]:
    """The lines below the table."""
    count = len(rows[0].tokens_per_s.samples)
    yield f"t/s: median ± half the range of {count} runs; random tokens, no sampling"
    yield (
        f"load {figures.load_ms:.0f} ms, first token {figures.first_token_ms:.0f} ms, "
        f"peak memory {figures.peak_rss_mb:.0f} MB"
    )
    found = figures.bandwidth
    speed = f"memory read at {found.measured_gb_s:.1f} GB/s (numpy)"
    if found.bytes_per_token is None or found.share is None:
        yield speed
        return
    case = next(row.case for row in rows if row.case.kind == "tg")
    yield (
        f"{speed}; {case.name} at depth {case.depth} reads {found.bytes_per_token / 1e6:.0f} MB "
        f"a token, {found.share:.0%} of that"
    )


def weights_bytes(manifest: Manifest) -> int:
    """Bytes of the weights files, each counted once."""
    data = {graph.data for graph in manifest.graphs.values()}
    return sum(manifest.files[name].bytes for name in data)


def _line(cells: Sequence[str]) -> str:
    padded = (
        cell.rjust(width) if width > 0 else cell.ljust(-width)
        for cell, (_, width) in zip(cells, COLUMNS, strict=True)
    )
    return "| " + " | ".join(padded) + " |"
