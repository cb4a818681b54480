"""The router's target table, measured:

    python tests/benchmarks/router/targets.py --record DIR [--bundle B] [--part fuzz] [--json FILE]

A row has what was promised ("pass", "ambitious"), the number, and what of it is real and what is
simulated. The quality and the price of remotes are always simulated, except in part `real`, where
the remote is llama.cpp's server with a real model.

Parts, and what they need beside --record DIR (see README.md):
    ranking     AUROC, calibration, certificates, remote calls
    fuzz        bytes that reach a remote, identifiers found
    budget      racing clients and one budget
    faults      the fault matrix, fail-over, an open breaker
    hedge       first tokens of two sides                        --bundle
    abort       local answers given up early
    passages    long documents cut down
    overhead    what deciding takes                              --bundle
    real        a cascade over two real models                   --bundle --gguf --llama-server
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path += [
    str(Path(__file__).resolve().parents[2] / folder)
    for folder in ("benchmarks", "benchmarks/router", "routing/servers", "routing/router")
]

import checkout  # noqa: F401  (the packages of this checkout come before installed ones)
from target_rows import Job, Row, table, to_json

MODULES = {
    "ranking": "ranking",
    "fuzz": "zero_bytes",
    "budget": "budget_race",
    "faults": "failover",
    "hedge": "hedging",
    "abort": "early_abort",
    "passages": "passages",
    "overhead": "overhead",
    "real": "real_remote",
}


def measured(parts: list[str], job: Job) -> Iterator[Row]:
    for part in parts:
        print(f"{part} …", file=sys.stderr, flush=True)
        yield from importlib.import_module(MODULES[part]).rows(job)


def machine() -> str:
    """Where and when."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {model}, {os.cpu_count()} cores, "
        f"load {load:.1f}, Python {platform.python_version()}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=list(MODULES), help="default: all")
    parser.add_argument("--record", type=Path, required=True, help="items.jsonl and recordings")
    parser.add_argument("--precision", default="exact")
    parser.add_argument("--bundle", type=Path, help="the bundle that was recorded")
    parser.add_argument("--gguf", type=Path, help="weights for llama-server")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server")
    parser.add_argument("--fuzz", type=int, default=10_000, help="fuzzed prompts a mode")
    parser.add_argument("--clients", type=int, default=32, help="processes on one budget")
    parser.add_argument("--rounds", type=int, default=3, help="of the fault matrix")
    parser.add_argument("--requests", type=int, default=100, help="to each policy of the hedge")
    parser.add_argument("--items", type=int, default=60, help="answered by real models")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    return parser.parse_args()


def main() -> None:
    given = vars(arguments())
    parts, file = given.pop("part") or list(MODULES), given.pop("json")
    where = machine()
    rows = list(measured(parts, Job(**given)))
    print(f"{where}\n\n{table(rows)}")
    if file is not None:
        document = {"machine": where, "parts": parts, "rows": to_json(rows)}
        file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
