"""Importing this puts the packages of this checkout before any that are installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "export")]
sys.path[:0] = PATHS


def environment() -> dict[str, str]:
    """The environment of a subprocess that is to find the same packages."""
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*PATHS, *([before] if before else [])])}
