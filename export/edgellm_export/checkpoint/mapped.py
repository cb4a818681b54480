"""A file mapped into memory, and the words in which readers complain about it."""

from __future__ import annotations

import mmap
import reprlib
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt, NotFound, StorageFailed

AGAIN = "download it again"


def map_file(path: Path, smallest_bytes: int, kind: str) -> mmap.mmap:
    """The bytes of a regular file, read-only; one-line errors for all that can be wrong with it.

    The mapping costs no memory until a page is read, and the system may drop its pages again.
    """
    try:
        if not path.exists():
            raise NotFound(f"{path} does not exist; check the path")
        if not path.is_file():
            raise Corrupt(f"{path} is not a file, so it is not {kind}; name the file itself")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < smallest_bytes:
                raise Corrupt(f"{path} has {size} bytes, too few for {kind}; {AGAIN}")
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StorageFailed(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error


def release(data: mmap.mmap, offset: int, size_bytes: int) -> None:
    """Give the memory of pages that were read back; whoever reads them again gets the same bytes.

    Else a process seems to hold every file that it has read, and a small machine runs out.
    """
    if sys.platform == "linux":  # elsewhere the advice is missing or means something else
        start = offset - offset % mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, start, offset + size_bytes - start)


def shown(value: object) -> str:
    """Something out of a foreign file, short and safe for a one-line message."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 70, 70
    text = short.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def all_finite(path: Path, name: str, values: NDArray[np.floating]) -> None:
    """Corrupt if a number is infinite or none; two passes, no temporary array."""
    with np.errstate(invalid="ignore"):
        extremes = (values.min(), values.max()) if values.size else ()
    if not np.isfinite(extremes).all():
        raise Corrupt(f"{path}: tensor {shown(name)} holds infinite or undefined numbers; {AGAIN}")


def widen_bfloat16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """bfloat16 bytes as float32: the same bits, sixteen zeros below."""
    wide = raw.view("<u2").astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)
