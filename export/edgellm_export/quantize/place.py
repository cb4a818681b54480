"""The calibration cache on disk: one run at a time, and nothing stays of killed ones.

CACHE/
├── KEY/          statistics of one checkpoint and text: whole files, taken over by a rerun
├── import.KEY/   the imported model while KEY is being made; owned by the lock of KEY
└── KEY.lock      a kernel lock: a killed process lets go of it
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

IMPORT = "import."


@contextmanager
def alone(cache: Path, key: str) -> Iterator[tuple[Path, Path]]:
    """The folder of `key` and an empty scratch folder, which goes at the end.

    Waits for another process that calibrates the same. Statistics of a model take as much room as
    its weights, so at the end those of this one are the only ones that are kept.
    """
    kept, scratch = cache / key, cache / f"{IMPORT}{key}"
    kept.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{key}.lock"):
        _remove_remnants(kept, scratch)
        scratch.mkdir()
        try:
            yield kept, scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _forget_others(cache, key)


def _remove_remnants(kept: Path, scratch: Path) -> None:
    """What a killed run has left half-made; the lock is held."""
    shutil.rmtree(scratch, ignore_errors=True)
    for part in (*kept.glob("*.tmp"), *kept.glob("*.part")):
        part.unlink(missing_ok=True)


def _forget_others(cache: Path, key: str) -> None:
    for folder in cache.iterdir():
        other = folder.name.removeprefix(IMPORT)
        if not folder.is_dir() or other == key:
            continue
        try:
            with FileLock(cache / f"{other}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue  # it is being made at this moment
