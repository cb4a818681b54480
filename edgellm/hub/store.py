"""The store: published bundles, and a workshop where the next one is made.

    $EDGELLM_HOME or the platform's user data folder
    ├── models/NAME/     published bundles, never changed afterwards: readers need no lock
    ├── downloads/KEY/   what was fetched for a bundle that is not published yet
    ├── tmp/NAME@ID/     a bundle in the making; owned by the lock of NAME
    └── locks/           kernel locks: a killed process lets go of them

A bundle appears by one rename and disappears by one rename, so nothing half-made has a name.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from edgellm import settings
from edgellm.bundle import manifest
from edgellm.bundle.manifest import Manifest
from edgellm.errors import Corrupt, NotFound, StorageFailed, UsageError
from edgellm.hub.disk import make_folder, storage_errors, sync_folder, sync_tree, tree_bytes
from edgellm.hub.progress import Progress, Silent
from edgellm.hub.reference import model_name

POLL_SECONDS = 0.1


def store_home(environ: Mapping[str, str]) -> Path:
    """The store's folder as the environment alone has it: `$EDGELLM_HOME`, else the platform's."""
    return settings.resolve(settings.from_environment(environ)).home_folder().absolute()


@dataclass(frozen=True, slots=True)
class Entry:
    """A bundle in the store. `manifest` None: it cannot be read, and `problem` says why."""

    name: str
    path: Path
    size_bytes: int
    modified_unix_seconds: float
    manifest: Manifest | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    home: Path

    def folder(self, name: str) -> Path:
        """Where the bundle `name` is or would be; UsageError when `name` is no plain name."""
        return self.home / "models" / model_name(name)

    def find(self, name: str) -> Path | None:
        """The folder of a published bundle, or None. Takes no lock and changes nothing."""
        folder = self.folder(name)
        return folder if (folder / manifest.MANIFEST_NAME).is_file() else None

    def names(self) -> list[str]:
        """The names of all published bundles, sorted."""
        models = self.home / "models"
        with storage_errors(models):
            found = [path.name for path in models.iterdir()] if models.is_dir() else []
        return sorted(name for name in found if _is_name(name) and self.find(name))

    def entries(self) -> list[Entry]:
        """Every published bundle, sorted by name; damaged ones carry their problem."""
        return [self._entry(name) for name in self.names()]

    def _entry(self, name: str) -> Entry:
        folder = self.folder(name)
        found, problem = None, None
        try:
            found = manifest.read(folder)
        except Corrupt as error:
            problem = str(error)
        with storage_errors(folder):
            modified = (folder / manifest.MANIFEST_NAME).stat().st_mtime
            return Entry(name, folder, tree_bytes(folder), modified, found, problem)

    def downloads(self, key: str) -> Path:
        """Where the files of one source wait for their conversion; lock `key` before use."""
        return self.home / "downloads" / key

    @contextmanager
    def lock(self, key: str, progress: Progress) -> Iterator[None]:
        """Holds the lock called `key`; a notice names the process that has it meanwhile.

        The kernel frees it when the holder dies. On a network file system without such locks
        two machines must not pull into one store at the same time.
        """
        path = make_folder(self.home / "locks") / f"{key}.lock"
        lock = FileLock(path)
        with storage_errors(path):
            if not _try(lock):
                progress.notice(f"waiting for {_holder(path)}, which is working on {key}")
                lock.acquire(poll_interval=POLL_SECONDS)
        try:
            _sign(path)
            yield
        finally:
            lock.release()

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A new folder to make the bundle `name` in; gone afterwards unless it was published.

        The caller holds the lock `name`, so older folders of that name are remnants: removed.
        """
        self._sweep(model_name(name))
        folder = make_folder(self.home / "tmp" / f"{model_name(name)}@{uuid.uuid4().hex[:8]}")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, name: str) -> Path:
        """The final folder of `name`: everything in `folder` made durable, then renamed once.

        Corrupt when the manifest is unreadable or a file it lists is not there in full size.
        """
        _check_complete(folder)
        target = self.folder(name)
        make_folder(target.parent)
        if self.find(name):
            raise StorageFailed(f"{target} exists already; remove it with edgellm rm {name}")
        with storage_errors(target):
            if target.exists():
                # Without a manifest nobody can load it, but it would be in the way.
                os.rename(target, folder.with_name(f"{target.name}@{uuid.uuid4().hex[:8]}"))
            sync_tree(folder)
            os.rename(folder, target)
            sync_folder(target.parent)
        return target

    def remove(self, name: str, progress: Progress | None = None) -> int:
        """Bytes freed by removing the bundle `name`; NotFound when there is none."""
        target = self.folder(name)
        if not target.is_dir():
            raise NotFound(f"the store has no model {name!r}; edgellm models lists what it has")
        with self.lock(target.name, progress or Silent()):
            size = tree_bytes(target)
            doomed = make_folder(self.home / "tmp") / f"{target.name}@{uuid.uuid4().hex[:8]}"
            with storage_errors(target):
                os.rename(target, doomed)
                sync_folder(target.parent)
                shutil.rmtree(doomed)
        return size

    def gc(self) -> list[Path]:
        """Removes the folders that dead processes left in `tmp`; returns what was removed."""
        removed: list[Path] = []
        tmp = self.home / "tmp"
        owners = {path.name.rpartition("@")[0] for path in tmp.iterdir()} if tmp.is_dir() else set()
        for name in sorted(owner for owner in owners if _is_name(owner)):
            lock = FileLock(make_folder(self.home / "locks") / f"{name}.lock")
            if _try(lock):
                try:
                    removed += self._sweep(name)
                finally:
                    lock.release()
        return removed

    def _sweep(self, name: str) -> list[Path]:
        """Removes what is in `tmp` for `name`, whose lock is held."""
        remnants = [
            path for path in (self.home / "tmp").glob("*@*") if path.name.rpartition("@")[0] == name
        ]
        for path in remnants:
            shutil.rmtree(path, ignore_errors=True)
        return remnants


def _check_complete(folder: Path) -> None:
    for path, record in manifest.read(folder).files.items():
        file = folder / path
        found = file.stat().st_size if file.is_file() else None
        if found != record.bytes:
            raise Corrupt(f"{file} has {found} bytes, its manifest says {record.bytes}; try again")


def _is_name(name: str) -> bool:
    try:
        return model_name(name) == name
    except UsageError:
        return False


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _signature(lock_path: Path) -> Path:
    return lock_path.with_suffix(".holder.json")


def _sign(lock_path: Path) -> None:
    """Notes who holds the lock. Beside the lock file: the lock is the kernel's, this is a hint."""
    who = {"pid": os.getpid(), "host": socket.gethostname()}
    with storage_errors(lock_path):
        _signature(lock_path).write_text(json.dumps(who))


def _holder(lock_path: Path) -> str:
    try:
        who = json.loads(_signature(lock_path).read_bytes())
        return f"process {int(who['pid'])} on {str(who['host'])[:64]}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
