"""From a path to a Checkpoint, by what is there and not by what its name promises."""

from __future__ import annotations

from pathlib import Path

from edgellm.errors import Incompatible, NotFound, StorageFailed
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.gguf import GgufCheckpoint
from edgellm_export.checkpoint.safetensors import INDEX, SINGLE, SafetensorsCheckpoint

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def open_checkpoint(path: Path) -> Checkpoint:
    """A GGUF file, or a folder with config.json and safetensors, or a folder with one GGUF file.

    NotFound and Incompatible say what is missing or why it is refused.
    """
    try:
        return _open(path)
    except OSError as error:
        raise StorageFailed(
            f"cannot read {path}: {error.strerror}; check the permissions"
        ) from error


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise NotFound(f"{path} does not exist; check the path")
    if path.suffix == ".safetensors":
        raise Incompatible(f"{path} lacks its config and tokenizer; name the folder it came in")
    if any(path.match(pattern) for pattern in PICKLES):
        raise _pickle(path)
    return GgufCheckpoint(path)


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        if not (folder / "config.json").exists():
            raise NotFound(f"{folder} has weights and no config.json; download it again")
        return SafetensorsCheckpoint(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return GgufCheckpoint(ggufs[0])
    if ggufs:
        raise Incompatible(
            f"{folder} has {len(ggufs)} GGUF files; name one, such as {ggufs[0].name}"
        )
    if any(pickle for pattern in PICKLES for pickle in folder.glob(pattern)):
        raise _pickle(folder)
    raise NotFound(f"{folder} has no {SINGLE}, no {INDEX} and no .gguf file; check the path")


def _pickle(path: Path) -> Incompatible:
    return Incompatible(f"{path} is a pickle, and pickle is never loaded; convert to safetensors")
