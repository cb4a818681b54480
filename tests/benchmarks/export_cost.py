"""What an export costs: wall time, CPU time and peak memory, against what is promised.

    python tests/benchmarks/export_cost.py --gguf model.gguf --work folder [--only big-int4 …]

Each row is one `edgellm export` in a process of its own. Memory is the largest resident set of that
process, files it has mapped included, and that of its helpers. The big checkpoint is made once
(2.5 GB) and stays in the work folder. Linux only. Exit code 1 when a promise is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import big_checkpoint
import checkout
import platformdirs
import psutil
import quiet

from edgellm.device import detect

MB = 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """One export, and what it may cost; `memory_ratio` is relative to the bfloat16 weights."""

    name: str
    big: bool
    options: tuple[str, ...]
    wall_s: float
    memory_ratio: float | None = None


CASES = (
    Case("smollm2-exact", False, (), 10),
    Case("smollm2-int4", False, ("--precision", "int4"), 10),
    Case("smollm2-int8", False, ("--precision", "int8"), 10),
    Case("smollm2-calibrated", False, ("--precision", "int4", "--calibrate"), 300),
    Case("big-int4", True, ("--precision", "int4"), 120, 1.5),
    Case("big-int8", True, ("--precision", "int8"), 120, 1.5),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one export took. `busy_percent`: of all cores, by other programs meanwhile."""

    case: str
    wall_s: float
    cpu_s: float
    memory_mb: float
    bundle_mb: float
    busy_percent: float


def main() -> int:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct")
    parser.add_argument("--work", type=Path, help="folder for checkpoint and bundles")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args()
    if not asked.gguf.is_file():
        parser.error(f"there is no {asked.gguf}")
    work = asked.work or platformdirs.user_cache_path("edgellm-benchmarks", appauthor=False)
    chosen = [case for case in CASES if case.name in asked.only]
    big = work / "big"
    if any(case.big for case in chosen):
        big_checkpoint.write(big)
    costs = [measure(case, big if case.big else asked.gguf, work) for case in chosen]
    print("\n".join(report(costs)))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
    return 0 if all(met(cost) for cost in costs) else 1


def measure(case: Case, source: Path, work: Path) -> Cost:
    """The cost of one export; its bundle is removed. Calibration starts without statistics."""
    out, home = work / "export-cost", work / "export-cost-home"
    for folder in (out, home):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "edgellm", "export", str(source), "-o", str(out)]
    environment = checkout.environment() | {"EDGELLM_HOME": str(home)}
    total = psutil.cpu_times()
    start = time.perf_counter()
    process = subprocess.Popen([*command, *case.options], env=environment, stdout=sys.stderr)
    helpers = Helpers(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    helpers.join()
    if process.returncode:
        sys.exit(f"{case.name}: the export failed with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    now = psutil.cpu_times()
    others = sum(now) - now.idle - now.iowait - (sum(total) - total.idle - total.iowait) - cpu
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    for folder in (out, home):
        shutil.rmtree(folder, ignore_errors=True)
    memory = usage.ru_maxrss * 1024 + helpers.peak_bytes
    busy = 100 * others / wall / (os.cpu_count() or 1)
    return Cost(case.name, wall, cpu, memory / MB, size / MB, max(0.0, busy))


class Helpers(threading.Thread):
    """Watches the children of a process: `peak_bytes` is the sum of their largest resident sets."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._parent = psutil.Process(pid)
        self._peaks: dict[int, int] = {}
        self.start()

    def run(self) -> None:
        while True:
            try:
                for child in self._parent.children(recursive=True):
                    resident = child.memory_info().rss
                    self._peaks[child.pid] = max(resident, self._peaks.get(child.pid, 0))
            except psutil.NoSuchProcess:
                if not psutil.pid_exists(self._parent.pid):
                    return
            time.sleep(0.1)

    @property
    def peak_bytes(self) -> int:
        return sum(self._peaks.values())


def limit_mb(case: Case) -> float | None:
    """How much memory the case may take."""
    if case.memory_ratio is None:
        return None
    return case.memory_ratio * big_checkpoint.weight_bytes() / MB


def met(cost: Cost) -> bool:
    """Whether the case kept both its promises."""
    case = next(case for case in CASES if case.name == cost.case)
    limit = limit_mb(case)
    return cost.wall_s < case.wall_s and (limit is None or cost.memory_mb < limit)


def report(costs: list[Cost]) -> Iterator[str]:
    """Markdown for people."""
    machine = detect.machine()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    yield f"{date}, {machine.cpu_name} ({machine.architecture}), {os.cpu_count()} cores"
    yield ""
    yield "| export | wall s | at most | CPU s | peak MB | at most | bundle MB | |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for cost in costs:
        case = next(case for case in CASES if case.name == cost.case)
        limit = limit_mb(case)
        word = "met" if met(cost) else "MISSED"
        yield (
            f"| {cost.case} | {cost.wall_s:.1f} | {case.wall_s:.0f} | {cost.cpu_s:.1f} | "
            f"{cost.memory_mb:.0f} | {'' if limit is None else f'{limit:.0f}'} | "
            f"{cost.bundle_mb:.0f} | {word} |"
        )
    busy = [cost for cost in costs if cost.busy_percent > quiet.BUSY_PERCENT_LIMIT]
    if busy:
        most = max(cost.busy_percent for cost in busy)
        yield ""
        yield (
            f"Other programs took up to {most:.0f} % of the cores during {len(busy)} of "
            f"{len(costs)} exports: their wall times prove nothing"
        )


if __name__ == "__main__":
    sys.exit(main())
