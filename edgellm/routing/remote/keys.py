"""Where a key comes from: the environment, else a file that nobody else can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgellm.errors import Refused, UsageError
from edgellm.routing.remote.options import Secret

KEY_FILE = "remote.key"
# No vendor's key is near this; a larger file is the wrong one.
KEY_LIMIT_BYTES = 4096


def read_key_file(path: Path) -> Secret:
    """The key in a file of one line. Refused unless the file is ours and closed to all others."""
    try:
        # One handle for the check and the text: nobody can swap the file in between.
        with path.open("rb") as file:
            _check(path, os.fstat(file.fileno()))
            raw = file.read(KEY_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {error.strerror or error}") from error
    if len(raw) > KEY_LIMIT_BYTES:
        raise UsageError(
            f"the key file {path} holds more than {KEY_LIMIT_BYTES} bytes; no key does"
        )
    try:
        return Secret(raw.decode("ascii").strip())
    except (UnicodeDecodeError, UsageError):
        # Without a cause: its message or its `object` holds what is in the file.
        raise UsageError(f"the key file {path} must hold one line of printable ASCII") from None


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"the key file {path} is no regular file")
    if os.name == "nt":
        # Windows keeps access in lists that this mode does not show; the user's folder is closed.
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise Refused(f"the key file {path} belongs to somebody else; make a copy of your own")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise Refused(f"others can open the key file {path} (mode {mode:04o}); chmod 600 {path}")
