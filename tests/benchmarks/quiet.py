"""Whether this machine has nothing else to do: timings of a busy one mean nothing."""

from __future__ import annotations

import os

import psutil

# A quiet desktop or server stays below; one busy core of two is 50.
BUSY_PERCENT_LIMIT = 10.0
# Of all cores, over the last minute.
LOAD_LIMIT = 0.5
WATCH_SECONDS = 3.0


def busy_percent(seconds: float = WATCH_SECONDS) -> float:
    """The share of all cores' time that was not idle, other guests of the host included."""
    return float(psutil.cpu_percent(interval=seconds))


def reason_to_wait(busy: float, load: float, cores: int) -> str | None:
    """One line for a machine that is busy, None for a quiet one."""
    if busy > BUSY_PERCENT_LIMIT:
        return f"its CPU is {busy:.0f} % busy, {BUSY_PERCENT_LIMIT:.0f} % is the limit"
    if load > LOAD_LIMIT * cores:
        return (
            f"its load average is {load:.1f} on {cores} cores, {LOAD_LIMIT * cores:g} is the limit"
        )
    return None


def ask() -> str | None:
    """`reason_to_wait` for this machine, now."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return reason_to_wait(busy_percent(), load, os.cpu_count() or 1)
