"""What this machine is: cores and memory that this process may really use, and CPU features.

On Linux everything is read from /proc and /sys, so a container's limits count: affinity and
cgroup quotas for cores, the smaller of MemAvailable and the cgroup's rest for memory. Elsewhere
psutil answers. `root` exists for tests, which pass a folder with made-up files.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# cgroup v1 says "no limit" with a number near 2^63; anything above this is no limit either.
NO_LIMIT_BYTES = 1 << 60
MB = 1e6


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` are physical ones this process may use; `memory_available_mb` is free right now.

    `cpu_features` are spelled as in /proc/cpuinfo; empty where the system does not tell.
    """

    system: str
    architecture: str
    cpu_name: str
    cpu_features: frozenset[str]
    cores: int
    memory_total_mb: float
    memory_available_mb: float


def machine(root: Path = Path("/")) -> Machine:
    """This machine as it is now. Never fails: what cannot be read is guessed low or left empty."""
    cpu = _cpuinfo(root)
    total_mb, available_mb = _memory_mb(root)
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        cpu_name=_cpu_name(root, cpu),
        cpu_features=frozenset((cpu.get("flags") or cpu.get("Features") or "").split()),
        cores=usable_cores(root),
        memory_total_mb=total_mb,
        memory_available_mb=available_mb,
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores this process may use, at least 1: a hyperthread is not a second core."""
    count = _physical_cores(root, _affinity())
    for quota in _cpu_quotas(root):
        # 1.5 cores of quota keep two threads busy most of the time.
        count = min(count, math.ceil(quota))
    return max(1, count)


def available_memory_mb(root: Path = Path("/")) -> float:
    """Memory this process may still take without swapping or being killed."""
    return _memory_mb(root)[1]


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _physical_cores(root: Path, cpus: frozenset[int]) -> int:
    base = root / "sys/devices/system/cpu"
    cores = set()
    for cpu in cpus:
        topology = base / f"cpu{cpu}" / "topology"
        package, core = _text(topology / "physical_package_id"), _text(topology / "core_id")
        if package is None or core is None:
            return _psutil_cores(len(cpus))
        # Core ids repeat across clusters on some arm64 kernels; the sibling list does not.
        siblings = _text(topology / "thread_siblings_list")
        cores.add((package, core, siblings))
    return len(cores)


def _psutil_cores(most: int) -> int:
    import psutil

    return min(psutil.cpu_count(logical=False) or most, most)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores granted by each control group above this process: v2 cpu.max, v1 cfs_quota_us."""
    for group in _groups(root, ""):
        quota, _, period = (_text(group / "cpu.max") or "").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)
    for group in _groups(root, "cpu"):
        quota = _text(group / "cpu.cfs_quota_us") or ""
        period = _text(group / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _memory_mb(root: Path) -> tuple[float, float]:
    """(total, available), each at most what the control groups grant."""
    info = _meminfo(root)
    if info is None:
        import psutil

        memory = psutil.virtual_memory()
        return memory.total / MB, memory.available / MB
    total, available = info
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return total / MB, available / MB


def _meminfo(root: Path) -> tuple[int, int] | None:
    rows = _colon_rows(_text(root / "proc/meminfo") or "")
    try:
        return _kib(rows["MemTotal"]), _kib(rows["MemAvailable"])
    except (KeyError, ValueError):
        return None


def _kib(text: str) -> int:
    return int(text.removesuffix("kB")) * 1024


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each limited control group; reclaimable file pages do not count.

    Mapped weights sit in the page cache of the group. The kernel drops inactive file pages before
    it kills, so they are available, as in Kubernetes' working set.
    """
    sets = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_name, used_name, cache_name in sets:
        for group in _groups(root, controller):
            limit, used = _text(group / limit_name) or "", _text(group / used_name) or ""
            if not (limit.isdigit() and used.isdigit()) or int(limit) > NO_LIMIT_BYTES:
                continue
            stat = (_text(group / "memory.stat") or "").split()
            cache = dict(zip(stat[::2], stat[1::2], strict=False)).get(cache_name, "0")
            yield int(limit), max(0, int(used) - int(cache))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and its ancestors; "" is the v2 hierarchy.

    A container often sees its own group mounted at the top, so every level is tried.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        # systemd's hybrid layout keeps v2 in its own folder.
        mounts = (controller,) if controller else ("", "unified")
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth])


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's rows, and rows such as Model that stand once."""
    return _colon_rows(_text(root / "proc/cpuinfo") or "")


def _cpu_name(root: Path, cpu: dict[str, str]) -> str:
    board = (_text(root / "proc/device-tree/model") or "").rstrip("\0")
    return cpu.get("model name") or board or cpu.get("Model") or platform.processor() or "unknown"


def _colon_rows(text: str) -> dict[str, str]:
    rows: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            rows.setdefault(key.strip(), value.strip())
    return rows


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def rss_mb() -> float:
    """Memory this process holds now."""
    import psutil

    return float(psutil.Process().memory_info().rss) / MB


def peak_rss_mb(root: Path = Path("/")) -> float:
    """The most memory this process has held so far."""
    # Linux's getrusage also counts the process that this one was started from.
    status = _colon_rows(_text(root / "proc/self/status") or "")
    if status.get("VmHWM", "").removesuffix("kB").strip().isdigit():
        return _kib(status["VmHWM"]) / MB
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / MB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak * 1024 / MB  # bytes, or KiB
