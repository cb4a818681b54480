from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm.device import detect

MEMINFO = "MemTotal:       8000000 kB\nMemFree:  100 kB\nMemAvailable:   6000000 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(cpu: int, core: int, siblings: str) -> dict[str, str]:
    base = f"sys/devices/system/cpu/cpu{cpu}/topology"
    return {
        f"{base}/physical_package_id": "0\n",
        f"{base}/core_id": f"{core}\n",
        f"{base}/thread_siblings_list": siblings,
    }


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two cores with two threads each, all allowed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    files: dict[str, str] = {}
    for cpu in range(4):
        files |= topology(cpu, cpu // 2, f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}")
    return files


def test_hyperthreads_are_not_cores(tmp_path: Path, four_threads: dict[str, str]) -> None:
    assert detect.usable_cores(tree(tmp_path, four_threads)) == 2


def test_equal_core_ids_in_two_clusters_are_two_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    files = {**topology(0, 0, "0"), **topology(1, 0, "1")}
    assert detect.usable_cores(tree(tmp_path, files)) == 2


def test_affinity_limits_cores(
    tmp_path: Path, four_threads: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3}, raising=False)
    assert detect.usable_cores(tree(tmp_path, four_threads)) == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, 2),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
    ],
)
def test_a_cpu_quota_limits_cores(
    tmp_path: Path, four_threads: dict[str, str], files: dict[str, str], cores: int
) -> None:
    assert detect.usable_cores(tree(tmp_path, four_threads | files)) == cores


def test_without_a_limit_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"})
    assert detect.available_memory_mb(root) == pytest.approx(6144)
    assert detect.machine(root).memory_total_mb == pytest.approx(8192)


def test_a_v2_memory_limit_counts_and_its_page_cache_does_not(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user.slice/job\n",
        "sys/fs/cgroup/user.slice/memory.max": "1000000000\n",
        "sys/fs/cgroup/user.slice/memory.current": "700000000\n",
        "sys/fs/cgroup/user.slice/memory.stat": "anon 500000000\ninactive_file 200000000\n",
        "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/job/memory.current": "600000000\n",
    }
    found = detect.machine(tree(tmp_path, files))
    assert (found.memory_total_mb, found.memory_available_mb) == (1000, 500)


def test_a_v1_memory_limit_counts(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/docker/x\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000",
    }
    assert detect.available_memory_mb(tree(tmp_path, files)) == 1500


def test_the_v1_number_for_no_limit_is_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000",
    }
    assert detect.available_memory_mb(tree(tmp_path, files)) == pytest.approx(6144)


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000",
        "sys/fs/cgroup/memory.current": "2000",
    }
    assert detect.available_memory_mb(tree(tmp_path, files)) == 0


@pytest.mark.parametrize(
    ("files", "name", "feature"),
    [
        (
            {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon\nflags\t: fpu avx2\n"},
            "Xeon",
            "avx2",
        ),
        (
            {
                "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimddp\n\nModel\t: A board\n",
                "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            },
            "Raspberry Pi 5 Model B Rev 1.0",
            "asimddp",
        ),
    ],
)
def test_name_and_features_are_read_on_x86_and_arm(
    tmp_path: Path, files: dict[str, str], name: str, feature: str
) -> None:
    found = detect.machine(tree(tmp_path, files))
    assert found.cpu_name == name
    assert feature in found.cpu_features


def test_a_system_without_proc_is_answered_by_psutil(tmp_path: Path) -> None:
    found = detect.machine(tmp_path)
    assert found.cores >= 1
    assert 0 < found.memory_available_mb <= found.memory_total_mb
    assert found.cpu_features == frozenset()


def test_this_machine_is_plausible() -> None:
    found = detect.machine()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_available_mb <= found.memory_total_mb
    assert all((found.system, found.architecture, found.cpu_name))


def test_detection_loads_nothing_heavy() -> None:
    code = (
        "import sys; from edgellm.device import detect; detect.machine();"
        "print({'numpy', 'onnxruntime', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_peak_memory_is_that_of_this_process_alone(tmp_path: Path) -> None:
    status = "Name:\tpython\nVmHWM:\t  250000 kB\nVmRSS:\t 1 kB\n"
    assert detect.peak_rss_mb(tree(tmp_path, {"proc/self/status": status})) == 256.0
    ballast = np.ones(50_000_000, np.float32)
    assert detect.peak_rss_mb() > ballast.nbytes / 1e6
    # The child of a large process starts with memory of its own.
    code = "from edgellm.device import detect; print(detect.peak_rss_mb())"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert float(child.stdout) < 100


def test_without_such_a_line_peak_memory_is_still_known(tmp_path: Path) -> None:
    assert detect.peak_rss_mb(tmp_path) > 1
    assert detect.peak_rss_mb(tree(tmp_path, {"proc/self/status": "VmHWM: lots\n"})) > 1
