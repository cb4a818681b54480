"""`open_bundle`: a reference becomes the folder of a bundle, by the shortest way there is.

a bundle folder            that folder
already in the store       its folder: no network, no lock
else, under a lock         sources in order → downloads/ → tmp/ → one rename into models/
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgellm.bundle import manifest
from edgellm.bundle.manifest import Source
from edgellm.errors import NotFound, Refused, StorageFailed, Unreachable, UsageError
from edgellm.hub import aliases
from edgellm.hub.aliases import SourceRow
from edgellm.hub.convert import Conversion, Converter, Exporter, is_recipe_file
from edgellm.hub.disk import (
    explain,
    is_full,
    need_space,
    storage_errors,
    sync_folder,
    sync_tree,
    tree_bytes,
)
from edgellm.hub.fetch import Fetched, fetch
from edgellm.hub.progress import Progress
from edgellm.hub.reference import (
    Alias,
    LocalRef,
    Reference,
    model_name,
    parse,
    store_name,
    unique_name,
)
from edgellm.hub.store import Store
from edgellm.stream import Sampling

_PRECISION = re.compile(r"[a-z0-9][a-z0-9_]{0,15}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """`offline` tries no source; `precision` None keeps what suits the source; `lora` is the folder
    of an adapter that `export_to` merges, which also takes the path of a recipe as precision."""

    offline: bool = False
    precision: str | None = None
    lora: Path | None = None

    def __post_init__(self) -> None:
        if self.precision is None or _PRECISION.fullmatch(self.precision):
            return
        if not is_recipe_file(self.precision):
            raise UsageError(f"{self.precision[:40]!r} is not a precision; try int4, int8 or fp16")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to make: the store's name for it, and the rows (or the local path) to make it from."""

    name: str
    rows: tuple[SourceRow, ...] = ()
    path: Path | None = None
    licence: str | None = None
    sampling: Sampling | None = None
    lora: Path | None = None


def open_bundle(
    reference: str,
    store: Store,
    options: HubOptions,
    progress: Progress,
    converter: Converter | None = None,
) -> Path:
    """The folder of the bundle that `reference` names, fetched and converted when need be.

    Raises UsageError (not a reference), NotFound and Unreachable (no such thing, no source
    answers), Refused (offline), Corrupt (a source lies), StorageFailed and MissingExtra.
    """
    found = find_bundle(reference, store, options.precision)
    if found is not None:
        return found
    wanted = _wanted(reference, store, options.precision)
    if options.offline and wanted.path is None:
        raise Refused(
            f"{wanted.name} is not in the store and offline mode fetches nothing; "
            f"run edgellm pull {reference} once with a network"
        )
    converter = converter or Exporter(progress)
    with store.lock(wanted.name, progress):
        # Another process may have made it while this one waited.
        ready = store.find(wanted.name)
        return ready or _make(wanted, store, options.precision, progress, converter)


def find_bundle(reference: str, store: Store, precision: str | None = None) -> Path | None:
    """The bundle folder of `reference` if it is on this machine already, else None."""
    parsed = parse(reference)
    if isinstance(parsed, LocalRef) and (parsed.path / manifest.MANIFEST_NAME).is_file():
        if precision is not None:
            raise UsageError(f"{reference} is a bundle already; give its source to convert it")
        return parsed.path
    return store.find(_with_precision(_base_name(parsed), precision))


def _base_name(parsed: Reference) -> str:
    if isinstance(parsed, Alias):
        return parsed.name
    return _local_name(parsed.path) if isinstance(parsed, LocalRef) else store_name(parsed)


def _wanted(reference: str, store: Store, precision: str | None) -> _Wanted:
    parsed = parse(reference)
    name = _with_precision(_base_name(parsed), precision)
    if isinstance(parsed, Alias):
        row = aliases.builtin().lookup(parsed.name, store.names())
        return _Wanted(name, row.sources, licence=row.licence, sampling=row.sampling)
    if isinstance(parsed, LocalRef):
        return _Wanted(name, path=parsed.path)
    return _Wanted(name, (SourceRow(parsed),))


def export_to(
    target: Path,
    reference: str,
    store: Store,
    options: HubOptions,
    progress: Progress,
    converter: Converter | None = None,
) -> Path:
    """`target`, now a bundle made from `reference`. It appears whole or not at all.

    Errors as in `open_bundle`; StorageFailed when `target` exists, which is never overwritten.
    """
    if target.exists():
        raise StorageFailed(f"{target} exists already; remove it or choose another folder")
    name = model_name(target.name)
    wanted = replace(_wanted(reference, store, None), name=name, lora=options.lora)
    if options.offline and wanted.path is None:
        raise Refused(f"offline mode fetches nothing; give {reference} as a local file")
    chosen = converter or Exporter(progress)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:

        def publish(fetched: Fetched) -> Path:
            _convert(fetched, wanted, scratch, options.precision, chosen)
            with storage_errors(target):
                sync_tree(scratch)
                scratch.chmod(0o755)  # mkdtemp made it private
                os.rename(scratch, target)
                sync_folder(target.parent)
            return target

        return _with_source(wanted, store, progress, publish)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make(
    wanted: _Wanted, store: Store, precision: str | None, progress: Progress, converter: Converter
) -> Path:
    """Publishes the bundle; the lock of its name is held."""
    store.gc()

    def publish(fetched: Fetched) -> Path:
        with store.scratch(wanted.name) as folder:
            _convert(fetched, wanted, folder, precision, converter)
            return store.publish(folder, wanted.name)

    return _with_source(wanted, store, progress, publish)


def _with_source(
    wanted: _Wanted, store: Store, progress: Progress, use: Callable[[Fetched], Path]
) -> Path:
    """What `use` makes of the first source that can be had, which is deleted afterwards."""
    if wanted.path is not None:
        return use(Fetched(wanted.path, Source(wanted.path.name)))
    failures: list[str] = []
    for position, row in enumerate(wanted.rows):
        key = "download-" + _download_key(row)
        with store.lock(key, progress):
            try:
                fetched = fetch(row, store.downloads(key), progress)
            except NotFound as error:
                if len(wanted.rows) == 1:
                    raise
                failures.append(f"{row.reference}: {error}")
                if position + 1 < len(wanted.rows):
                    following = wanted.rows[position + 1].reference
                    progress.notice(f"{row.reference}: {error}; trying {following}")
                continue
            made = use(fetched)
            shutil.rmtree(store.downloads(key), ignore_errors=True)
            return made
    raise Unreachable(f"no source of {wanted.name} can be had: {' · '.join(failures)}")


def _convert(
    fetched: Fetched, wanted: _Wanted, folder: Path, precision: str | None, converter: Converter
) -> None:
    """Fills `folder`; StorageFailed when the disk is full, before or while it is written."""
    path, origin = fetched.path, fetched.origin
    need_space(folder, tree_bytes(path) if path.is_dir() else path.stat().st_size)
    origin = replace(origin, licence=wanted.licence or origin.licence)
    try:
        converter.convert(
            Conversion(path, origin, wanted.name, precision, wanted.sampling, wanted.lora), folder
        )
    except OSError as error:
        if is_full(error):
            raise StorageFailed(explain(error, folder)) from error
        raise


def _download_key(row: SourceRow) -> str:
    return unique_name(store_name(row.reference), str(row.reference))


def _with_precision(name: str, precision: str | None) -> str:
    if precision is not None and is_recipe_file(precision):
        raise UsageError(
            f"the store knows precisions by name; with a recipe file make a folder of your own: "
            f"edgellm export {name} -o DIR --precision {precision}"
        )
    return name if precision is None else f"{name}-{precision}"


def _local_name(path: Path) -> str:
    """A store name that changes when the checkpoint does: path, sizes and times go into it."""
    if not path.exists():
        raise NotFound(_no_such_path(path))
    if not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path} is neither a file nor a folder; give a .gguf file or a folder")
    if path.is_file() and path.suffix.lower() != ".gguf":
        why = "pickled weights are never read" if path.suffix in _PICKLES else "not a GGUF file"
        raise UsageError(f"{path}: {why}; give a .gguf file, a bundle or a Hugging Face folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise NotFound(f"{path} holds neither edgellm.json nor config.json; check the path")
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    stem = path.stem if path.is_file() else path.name
    return unique_name(stem, repr((str(path.resolve()), stats)))


def _no_such_path(path: Path) -> str:
    looks_like_repository = len(path.parts) == 2 and path.parts[0] not in ("/", "..")
    hint = f"for Hugging Face write hf:{path}" if looks_like_repository else "check the path"
    return f"no file or folder {path}; {hint}"
