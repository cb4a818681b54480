"""Files of a model folder: found without leaving it, read up to a limit, parsed with suspicion."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgellm.errors import Corrupt, NotFound, StorageFailed
from edgellm_export.checkpoint.mapped import AGAIN, shown

CONFIG_LIMIT_BYTES = 4 << 20
# The largest published tokenizer.json has 33 MB (262,144 tokens).
TOKENIZER_LIMIT_BYTES = 128 << 20

_FILE_NAME = re.compile(r"[A-Za-z0-9_.+ -]{1,200}")


def inside(folder: Path, name: str) -> Path:
    """The path of a file directly in `folder`; Corrupt if the name or a link leads elsewhere.

    One kind of link that leaves is accepted: that of huggingface_hub's cache, whose folder
    models--X/snapshots/REVISION holds links into models--X/blobs.
    """
    path = folder / name
    if name in (".", "..") or not _FILE_NAME.fullmatch(name):
        raise Corrupt(
            f"{folder}: file name {shown(name)} is not a plain name in this folder; refuse it"
        )
    if path.is_symlink():
        home = folder.resolve()
        allowed = (
            [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
        )
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:
            raise Corrupt(f"{path} is a link that leads nowhere; replace it by the file") from error
        if target.parent not in allowed:
            raise Corrupt(f"{path} is a link out of its folder; replace it by the file itself")
    return path


def read_text(folder: Path, name: str, limit_bytes: int) -> str | None:
    """The UTF-8 text of a file in `folder`, or None if there is none."""
    path = inside(folder, name)
    if not path.exists():
        return None
    if not path.is_file():
        raise Corrupt(f"{path} is not a file; {AGAIN}")
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise StorageFailed(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error
    if len(content) > limit_bytes:
        raise Corrupt(f"{path} has more than {limit_bytes} bytes, which no real one has; {AGAIN}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path} is not UTF-8 text: {error.reason}; {AGAIN}") from error


def read_object(folder: Path, name: str, limit_bytes: int = CONFIG_LIMIT_BYTES) -> dict[str, Any]:
    """The JSON object in a file of `folder`; NotFound if there is no such file."""
    text = read_text(folder, name, limit_bytes)
    if text is None:
        raise NotFound(f"{folder} has no {name}; {AGAIN}")
    return parse_object(text, folder / name)


def parse_object(text: str | bytes, path: Path) -> dict[str, Any]:
    """A JSON object; Corrupt for anything else, keys that appear twice included."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not valid JSON: {error}; {AGAIN}") from error
    if not isinstance(value, dict):
        raise Corrupt(f"{path} must hold a JSON object, got {type(value).__name__}; {AGAIN}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} appears twice")
        found[key] = value
    return found
