"""The note that a bundle was found sound, so that it need not be hashed at every start.

It holds one digest over the manifest and over size, times and inode of each file. Whatever else
is in it, or no note at all, means: look again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from edgellm.bundle.manifest import Manifest

FILE_NAME = ".verified"
# Part of the digest: raise it when a check is added, and every bundle is looked at again.
CHECKS = 1
# Changes within one tick of a file system's clock look alike. The slowest clock (FAT) ticks every
# two seconds.
CLOCK_TICK_NS = 2_000_000_000


def digest(found: Manifest, states: Iterable[os.stat_result]) -> bytes:
    """What stands for this manifest with its files in these states.

    The change time is the one that nobody can set back. Windows has none (there it is the birth
    time), so on Windows the modification time has to do.
    """
    seen = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in states]
    text = f"{CHECKS} {seen} {found.to_json()}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest().encode()


def settled(states: Iterable[os.stat_result], now_ns: int) -> bool:
    """Whether a change after `now_ns` would show in the times of the files."""
    return all(max(s.st_mtime_ns, s.st_ctime_ns) + CLOCK_TICK_NS < now_ns for s in states)


def matches(folder: Path, wanted: bytes) -> bool:
    """Whether the folder's stamp is `wanted`."""
    path = folder / FILE_NAME
    try:
        # A pipe of this name would keep us waiting.
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(wanted) + 1) == wanted
    except OSError:
        return False


def write(folder: Path, wanted: bytes) -> None:
    """Leaves the stamp in one rename; where that fails, the next start hashes again."""
    part = folder / f"{FILE_NAME}.{os.getpid()}"
    try:
        with part.open("xb") as file:
            file.write(wanted)
        os.replace(part, folder / FILE_NAME)
    except OSError:
        with suppress(OSError):
            part.unlink()
