from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub_fakes import Notes, make_bundle, start_python

from edgellm.bundle.manifest import Source
from edgellm.errors import Corrupt, NotFound, StorageFailed, UsageError
from edgellm.hub.progress import Silent
from edgellm.hub.store import Store, store_home

ORIGIN = Source("here")


def published(store: Store, name: str = "tiny") -> Path:
    with store.lock(name, Silent()), store.scratch(name) as folder:
        make_bundle(folder, name, ORIGIN)
        return store.publish(folder, name)


def test_the_environment_names_the_home(tmp_path: Path) -> None:
    assert store_home({"EDGELLM_HOME": str(tmp_path)}) == tmp_path
    assert store_home({"EDGELLM_HOME": ""}) == store_home({})
    assert store_home({}).is_absolute()
    assert "~" not in str(store_home({"EDGELLM_HOME": "~/x"}))


def test_a_published_bundle_is_found_and_its_workshop_is_gone(store: Store) -> None:
    assert store.find("tiny") is None
    folder = published(store)
    assert store.find("tiny") == folder == store.home / "models" / "tiny"
    assert list((store.home / "tmp").iterdir()) == []
    (entry,) = store.entries()
    assert (entry.name, entry.problem) == ("tiny", None)
    assert entry.size_bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def test_looking_does_not_write(store: Store) -> None:
    assert store.find("tiny") is None
    assert store.entries() == []
    assert store.gc() == []
    assert not store.home.exists()


def test_an_incomplete_bundle_is_never_published(store: Store) -> None:
    for damage in ("manifest", "missing", "short"):
        with store.scratch("tiny") as folder:
            make_bundle(folder, "tiny", ORIGIN)
            match damage:
                case "manifest":
                    (folder / "edgellm.json").unlink()
                case "missing":
                    (folder / "onnx/model.onnx").unlink()
                case "short":
                    (folder / "onnx/model.onnx_data").write_bytes(b"w")
            with pytest.raises(Corrupt):
                store.publish(folder, "tiny")
        assert store.names() == []


def test_everything_is_durable_before_it_gets_a_name(store: Store, monkeypatch) -> None:
    synced: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def check(source: Path, target: Path) -> None:
        wanted = {str(path) for path in [Path(source), *Path(source).rglob("*")]}
        assert wanted <= set(synced)
        rename(source, target)
        synced.clear()

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file an fsync is for")
    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", check)
    published(store)
    assert synced == [str(store.home / "models")]


def test_a_bundle_is_not_overwritten(store: Store) -> None:
    folder = published(store)
    with pytest.raises(StorageFailed, match="exists already"):
        published(store)
    assert (folder / "edgellm.json").is_file()


def test_a_folder_that_lost_its_manifest_gives_way(store: Store) -> None:
    folder = published(store)
    (folder / "edgellm.json").unlink()
    assert store.find("tiny") is None
    published(store)
    assert store.names() == ["tiny"]


def test_a_damaged_bundle_is_listed_with_its_problem(store: Store) -> None:
    (published(store) / "edgellm.json").write_text("{")
    (entry,) = store.entries()
    assert entry.manifest is None
    assert "not valid JSON" in str(entry.problem)


def test_removing_frees_what_it_says(store: Store) -> None:
    published(store)
    size = store.entries()[0].size_bytes
    assert store.remove("tiny") == size
    assert store.find("tiny") is None
    assert list((store.home / "tmp").iterdir()) == []
    with pytest.raises(NotFound, match="no model 'tiny'"):
        store.remove("tiny")


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "..", "a/b", "", ".", "x\0", "~", "a\\b", "con", "é", "-x"]
)
def test_no_name_leaves_the_store(store: Store, name: str) -> None:
    for act in (store.folder, store.find, store.remove):
        with pytest.raises(UsageError):
            act(name)


def test_a_failed_making_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.scratch("tiny") as folder:
            make_bundle(folder, "tiny", ORIGIN)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((store.home / "tmp").iterdir()) == []
    assert store.names() == []


HOLD = """
import sys, time
from pathlib import Path
from edgellm.hub.progress import Silent
from edgellm.hub.store import Store
store = Store(Path(sys.argv[1]))
with store.lock("tiny", Silent()), store.scratch("tiny") as folder:
    (folder / "half").write_text("made")
    print("holding", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holding(store: Store, seconds: float) -> subprocess.Popen[str]:
    child = start_python(HOLD, str(store.home), str(seconds))
    assert child.stdout is not None
    assert child.stdout.readline() == "holding\n"
    return child


def test_waiting_for_a_lock_names_the_holder(store: Store, notes: Notes) -> None:
    child = holding(store, 0.4)
    with store.lock("tiny", notes):
        pass
    child.communicate(timeout=30)
    assert len(notes.lines) == 1
    assert f"process {child.pid} " in notes.lines[0]
    assert "tiny" in notes.lines[0]


def test_a_killed_holder_lets_go_and_its_remnant_is_swept(store: Store, notes: Notes) -> None:
    child = holding(store, 60)
    (remnant,) = (store.home / "tmp").iterdir()
    assert store.gc() == []
    assert remnant.exists()
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert store.names() == []
    assert store.gc() == [remnant]
    assert not remnant.exists()
    with store.lock("tiny", notes):
        assert notes.lines == []


def test_a_garbled_holder_note_does_not_matter(store: Store, notes: Notes) -> None:
    child = holding(store, 0.4)
    (store.home / "locks" / "tiny.holder.json").write_text("[1")
    with store.lock("tiny", notes):
        pass
    child.communicate(timeout=30)
    assert "another process" in notes.lines[0]


@pytest.fixture
def forbidden(tmp_path: Path):
    """A folder nobody may write to: by its mode, or for root by a read-only mount."""
    folder = tmp_path / "forbidden"
    folder.mkdir()
    if sys.platform == "win32":
        pytest.skip("folder modes do not forbid writing on Windows")
    if os.geteuid():
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("root may write anywhere, and a read-only file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_permission_is_one_line_that_says_what_to_do(forbidden: Path) -> None:
    store = Store(forbidden / "home")
    assert store.names() == []
    with pytest.raises(StorageFailed, match=r"cannot write .*; set EDGELLM_HOME") as caught:
        published(store)
    assert "\n" not in str(caught.value)


def test_a_home_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageFailed, match="EDGELLM_HOME"):
        published(Store(tmp_path / "file"))
    with pytest.raises(StorageFailed, match="EDGELLM_HOME"):
        published(Store(Path("/dev/null/x")))
