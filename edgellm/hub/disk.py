"""Writing so that a power cut or a full disk leaves either the old state or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgellm.errors import StorageFailed

# Room beside the bytes we know of, for the file system's own needs.
SPARE = 0.05
CHUNK_BYTES = 1 << 20


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


@contextmanager
def storage_errors(path: Path, kept: str = "") -> Iterator[None]:
    """Turns an OSError inside into StorageFailed: one line, with what is free and what to do.

    Wrap disk work only: network trouble is an OSError too.
    """
    try:
        yield
    except OSError as error:
        raise StorageFailed(explain(error, path) + kept) from error


def explain(error: OSError, path: Path) -> str:
    """One line for an OSError met while writing at `path`."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            free = megabytes(free_bytes(path))
            what = f"no space left to write {path} ({free} free)"
            return f"{what}; free some space or set EDGELLM_HOME to another disk"
        case errno.EFBIG:
            return f"{path} exceeds this system's limit on file size; raise it (ulimit -f)"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            what = f"cannot write {path}: {error.strerror}"
            return f"{what}; set EDGELLM_HOME to a folder you may write to"
        case _:
            return (
                f"cannot use {path}: {error.strerror or error}; set EDGELLM_HOME to another folder"
            )


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def need_space(path: Path, count: int) -> None:
    """StorageFailed unless the disk of `path` has room for `count` bytes and a little more."""
    needed, free = int(count * (1 + SPARE)), free_bytes(path)
    if needed > free:
        raise StorageFailed(
            f"{megabytes(needed)} are needed at {path} and {megabytes(free)} are free; "
            "free some space or set EDGELLM_HOME to another disk"
        )


def make_folder(path: Path) -> Path:
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    # Windows flushes only handles that may write.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Makes names in `path` durable; Windows has no such call and keeps them in its journal."""
    if os.name != "nt":
        sync_file(path)


def sync_tree(folder: Path) -> None:
    """Makes every file and every folder below and including `folder` durable."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(root, name))
        sync_folder(Path(root))


def tree_bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
