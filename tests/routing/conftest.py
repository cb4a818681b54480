from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# importmode=importlib leaves these folders out of the path; the evaluation set is a program's part.
sys.path += [
    str(Path(__file__).parent),
    str(Path(__file__).parent / "servers"),
    str(Path(__file__).parent.parent / "benchmarks" / "router"),
    str(Path(__file__).parent / "router"),
    str(Path(__file__).parent.parent / "benchmarks"),
]

from launch import Served, serve_faults


@pytest.fixture(scope="session")
def fault_server() -> Iterator[Served]:
    """Misbehaves by name; see servers/misbehave.py."""
    with serve_faults() as served:
        yield served
