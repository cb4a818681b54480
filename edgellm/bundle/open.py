"""Opening a bundle: `verify` looks at every byte the runtime is going to trust.

every time   each listed file is a plain file of the folder, in full size, without a second name;
             nothing that the runtime would read is there without being listed
once         sha256 of each file; graphs read weights from their own data file only

"Once" is until a file changes: a stamp in the folder says what was found sound.

ONNX Runtime 1.31.1 itself refuses external data behind "..", an absolute path or a symbolic link.
It reads any other file in or below the graph's folder, and a hard link to a file anywhere on the
disk. Verify leaves exactly one file, the one whose hash is known.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path, PurePosixPath

from edgellm.bundle import external, manifest, stamp
from edgellm.bundle.manifest import MANIFEST_NAME, FileRecord, Graph, Manifest
from edgellm.errors import Corrupt, StorageFailed

# Graphs without weights have some 100 kB; scanning this much takes seconds.
GRAPH_LIMIT_BYTES = 16 << 20
# What the runtime reads by name, beside the graphs.
READ_BY_NAME = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


def verify(folder: Path) -> Manifest:
    """The manifest of a bundle whose files are all there, unchanged and its own.

    Corrupt names the first file that is not, what was expected and what was found; StorageFailed
    when a file cannot be read. The first call hashes everything; later calls take milliseconds
    while size, times and inode of the files stay the same. Not a defence against somebody who
    exchanges files while they are being read.
    """
    try:
        if not os.path.lexists(folder / MANIFEST_NAME):
            raise Corrupt(f"{folder} is not a bundle: it has no {MANIFEST_NAME}; export it again")
        _state(folder, MANIFEST_NAME)
        found = manifest.read(folder)
        _check(folder, found)
    except OSError as error:
        what = f"cannot read {error.filename or folder}: {error.strerror or error}"
        raise StorageFailed(f"{what}; check its permissions and its disk") from error
    return found


def _check(folder: Path, found: Manifest) -> None:
    started_ns = time.time_ns()
    states = [_state(folder, path) for path in found.files]
    for (path, record), state in zip(found.files.items(), states, strict=True):
        if state.st_size != record.bytes:
            sizes = f"has {state.st_size} bytes, the manifest says {record.bytes}"
            raise Corrupt(f"{folder / path} {sizes}; {_again(folder)}")
    _check_listed(folder, found)
    wanted = stamp.digest(found, states)
    if stamp.matches(folder, wanted):
        return
    for path, record in found.files.items():
        _check_hash(folder, path, record)
    for graph in found.graphs.values():
        _check_graph(folder, graph, found)
    if stamp.settled(states, started_ns):
        stamp.write(folder, wanted)


def _state(folder: Path, path: str) -> os.stat_result:
    """What the system says of a file; Corrupt unless it is one, in the folder and only there."""
    here = folder
    try:
        for part in PurePosixPath(path).parts:
            here = here / part
            state = here.lstat()
            if stat.S_ISLNK(state.st_mode):
                what = f"{here} is a symbolic link, which may leave the bundle"
                raise Corrupt(f"{what}; put a copy of what it points to in its place")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise Corrupt(f"{folder / path} is missing; {_again(folder)}") from error
    if not stat.S_ISREG(state.st_mode):
        raise Corrupt(f"{here} is not a regular file; {_again(folder)}")
    if state.st_nlink != 1:
        what = f"{here} has {state.st_nlink} names (hard links), which may be outside the bundle"
        raise Corrupt(f"{what}; put a copy of the file in its place")
    return state


def _check_listed(folder: Path, found: Manifest) -> None:
    """Corrupt when the runtime would read a file that nobody has hashed."""
    for name in READ_BY_NAME:
        if name not in found.files and os.path.lexists(folder / name):
            raise Corrupt(
                f"{folder / name} was added to the bundle: the manifest does not list it; "
                f"remove that file, or {_again(folder)}"
            )
    for graph in found.graphs.values():
        for path in (graph.path, graph.data):
            if path not in found.files:
                raise Corrupt(f"{folder / path} has no hash in the manifest; {_again(folder)}")


def _check_hash(folder: Path, path: str, record: FileRecord) -> None:
    with (folder / path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != record.sha256:
        hashes = f"has sha256 {sha256:.12}…, the manifest says {record.sha256:.12}…"
        raise Corrupt(f"{folder / path} {hashes}: it was changed; {_again(folder)}")


def _check_graph(folder: Path, graph: Graph, found: Manifest) -> None:
    """Corrupt unless the graph reads weights from its own data file alone, and inside it."""
    file, data = folder / graph.path, PurePosixPath(graph.data)
    bytes_ = found.files[graph.path].bytes
    try:
        # By another suffix ONNX Runtime may take the file for a format that is not checked here.
        if file.suffix != ".onnx" or PurePosixPath(graph.path).parent != data.parent:
            raise Corrupt(f"it is not an .onnx file beside its weights {graph.data!r:.200}")
        if bytes_ > GRAPH_LIMIT_BYTES:
            raise Corrupt(f"it has {bytes_} bytes, and {GRAPH_LIMIT_BYTES} are enough for a graph")
        for read in external.references(file.read_bytes()):
            _check_reference(read, data.name, found.files[graph.data].bytes)
    except Corrupt as error:
        raise Corrupt(f"graph {file}: {error}; {_again(folder)}") from error


def _check_reference(read: external.Reference, data: str, data_bytes: int) -> None:
    what = f"it reads weights {read.tensor!r:.80} from {read.location!r:.200}"
    if read.location != data:
        raise Corrupt(f"{what}, outside its bundle: only {data!r:.200} belongs to it")
    if read.offset + read.length > data_bytes:
        end = read.offset + read.length
        raise Corrupt(f"{what} up to byte {end}, but that file has {data_bytes} bytes")


def _again(folder: Path) -> str:
    return f"remove it with edgellm rm {folder.absolute().name} and pull it again, or export again"
