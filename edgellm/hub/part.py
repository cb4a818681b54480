"""A file on its way: bytes go to `NAME.part`, whose sha256 is known at any moment.

One writer at a time: the caller holds the lock of the target. Bytes survive a killed process and
are hashed again before anything is appended. Beside them `NAME.part.json` remembers which version
of which URL they belong to.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from edgellm.errors import Corrupt
from edgellm.hub.disk import CHUNK_BYTES, megabytes, storage_errors, sync_folder


class Part:
    """Use in a `with` block; `length` and `sha256` describe what is on disk now."""

    def __init__(self, target: Path, url: str | None) -> None:
        """`url` None: the bytes come from this disk, so a failed attempt is not worth keeping."""
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.url = url
        self.validator: str | None = None
        self.length = 0
        self._note = target.with_name(target.name + ".part.json")
        self._hash = hashlib.sha256()

    def __enter__(self) -> Part:
        with storage_errors(self.path):
            self._file: BinaryIO = self.path.open("ab+", buffering=0)
        if self.url is None:
            self.restart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is not None and self.url is None:
            self.discard()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def resume(self, limit_bytes: int | None, hash_known: bool) -> int:
        """How many bytes of an earlier attempt are kept, now hashed; 0 when none can be trusted.

        Trusted means: there is a sha256 to check the whole with, or the server can be asked
        whether it still holds the version these bytes came from.
        """
        size = os.fstat(self._file.fileno()).st_size
        self.validator = self._read_note()
        too_long = limit_bytes is not None and size > limit_bytes
        if too_long or not (hash_known or self.validator):
            self.restart()
            return 0
        with storage_errors(self.path):
            self._file.seek(0)
            while chunk := self._file.read(CHUNK_BYTES):
                self._hash.update(chunk)
                self.length += len(chunk)
        return self.length

    def restart(self) -> None:
        """Forgets everything received so far."""
        with storage_errors(self.path):
            self._file.truncate(0)
            self._note.unlink(missing_ok=True)
        self.validator = None
        self.length = 0
        self._hash = hashlib.sha256()

    def remember(self, validator: str | None) -> None:
        """Notes the version (ETag or date) that the bytes to come belong to."""
        if validator == self.validator:
            return
        self.validator = validator
        with storage_errors(self._note):
            self._note.write_text(json.dumps({"url": self.url, "validator": validator}))

    def append(self, chunk: bytes) -> None:
        """Adds `chunk`; StorageFailed when the disk is full, and what is there stays."""
        view = memoryview(chunk)
        while view:
            kept = f"; {megabytes(self.length)} are kept, to be resumed" if self.url else ""
            with storage_errors(self.path, kept):
                written = self._file.write(view) or 0
            self._hash.update(view[:written])
            self.length += written
            view = view[written:]

    def discard(self) -> None:
        """Removes the bytes and the note."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def publish(self) -> str:
        """The sha256 of `target`, which now durably holds the bytes."""
        with storage_errors(self.target):
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.path, self.target)
            self._note.unlink(missing_ok=True)
            sync_folder(self.target.parent)
        return self.sha256

    def require(self, sha256: str, what: str) -> None:
        """Corrupt, and the bytes are gone, unless their hash is `sha256`."""
        if self.sha256 != sha256:
            self.discard()
            raise Corrupt(
                f"{what}: sha256 is {self.sha256[:16]}…, expected {sha256[:16]}…; the file was "
                "deleted: try again, and distrust the source if it happens twice"
            )

    def _read_note(self) -> str | None:
        try:
            note = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            return None
        known = isinstance(note, dict) and note.get("url") == self.url
        validator = note.get("validator") if known else None
        return validator if isinstance(validator, str) else None
