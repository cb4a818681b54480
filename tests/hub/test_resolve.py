from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hub_fakes import Packer, Server, make_bundle, sha256, start_python

from edgellm.bundle import manifest
from edgellm.bundle.manifest import Source
from edgellm.errors import (
    Corrupt,
    EdgellmError,
    MissingExtra,
    NotFound,
    Refused,
    StorageFailed,
    Unreachable,
    UsageError,
)
from edgellm.hub import HubOptions, Store, aliases, convert, find_bundle, open_bundle

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSORS = bytes(range(251)) * 4_000
ONLINE = HubOptions()


def repository(server: Server, name: str = "org/tiny") -> None:
    files = {"config.json": b"{}", "model.safetensors": TENSORS}
    siblings = [{"rfilename": path, "size": len(body)} for path, body in files.items()]
    siblings[1]["lfs"] = {"size": len(TENSORS), "sha256": sha256(TENSORS), "pointerSize": 130}
    answer = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": ["license:mit"]}
    server.files[f"/api/models/{name}"] = json.dumps(answer).encode()
    for path, body in files.items():
        server.files[f"/{name}/resolve/{COMMIT}/{path}"] = body


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A Hub for this process and for the ones it starts."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs edgellm[export]")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    repository(server)
    return server


@pytest.fixture
def two_sources(hub: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An alias whose first source does not exist and whose second does."""
    text = (
        '[tiny]\nlicence = "Apache-2.0"\n'
        '[[tiny.sources]]\nreference = "hf:org/absent"\n'
        '[[tiny.sources]]\nreference = "hf:org/tiny"\n'
    )
    table = aliases.read_aliases(text)
    monkeypatch.setattr(aliases, "builtin", lambda: table)
    return hub


def test_a_fetched_model_is_published_and_the_source_is_gone(hub, store, notes, packer) -> None:
    folder = open_bundle("hf:org/tiny", store, ONLINE, notes, packer)
    assert folder == store.home / "models" / "org--tiny"
    found = manifest.read(folder)
    assert found.source == Source("hf:org/tiny", COMMIT, sha256(TENSORS), "mit")
    assert (folder / "onnx/model.onnx_data").read_bytes() == TENSORS
    assert list((store.home / "downloads").iterdir()) == []
    assert list((store.home / "tmp").iterdir()) == []


def test_the_second_call_needs_no_network_no_lock_and_no_exporter(
    hub, store, notes, packer, monkeypatch
) -> None:
    first = open_bundle("hf:org/tiny", store, ONLINE, notes, packer)
    hub.asked.clear()
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    monkeypatch.setattr(Store, "lock", None)
    for options in (ONLINE, HubOptions(offline=True)):
        assert open_bundle("hf:org/tiny", store, options, notes) == first
    assert hub.asked == []
    assert len(packer.asked) == 1


def test_the_next_source_is_tried_and_one_line_says_so(two_sources, store, notes, packer) -> None:
    folder = open_bundle("tiny", store, ONLINE, notes, packer)
    assert folder.name == "tiny"
    told = [line for line in notes.lines if "trying hf:org/tiny" in line]
    assert len(told) == 1
    assert "hf:org/absent" in told[0]
    assert manifest.read(folder).source.licence == "Apache-2.0"


def test_when_no_source_answers_each_reason_is_told(
    two_sources, store, notes, packer, monkeypatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"hf:org/absent: .* hf:org/tiny: ") as caught:
        open_bundle("tiny", store, ONLINE, notes, packer)
    assert "\n" not in str(caught.value)
    assert store.names() == []


def test_a_source_that_lies_is_an_error_not_a_reason_to_go_on(
    two_sources, store, notes, packer
) -> None:
    repository(two_sources, "org/absent")
    path = f"/org/absent/resolve/{COMMIT}/model.safetensors"
    two_sources.files[path] = b"x" * len(TENSORS)
    with pytest.raises(Corrupt):
        open_bundle("tiny", store, ONLINE, notes, packer)
    assert store.names() == []


def test_offline_tries_nothing_and_says_what_to_do(two_sources, store, notes, packer) -> None:
    for reference in ("tiny", "hf:org/tiny", "pypi:x==1#y.gguf"):
        with pytest.raises(Refused, match=f"edgellm pull {reference}"):
            open_bundle(reference, store, HubOptions(offline=True), notes, packer)
    with pytest.raises(NotFound, match=r"did you mean tiny\?"):
        open_bundle("tinny", store, HubOptions(offline=True), notes, packer)
    assert two_sources.asked == []
    assert not store.home.exists()


def test_a_bundle_folder_is_returned_as_it_is(tmp_path, store, notes) -> None:
    make_bundle(tmp_path / "mine", "mine", Source("here"))
    assert open_bundle(str(tmp_path / "mine"), store, ONLINE, notes) == tmp_path / "mine"
    assert not store.home.exists()
    with pytest.raises(UsageError, match="is a bundle already"):
        open_bundle(str(tmp_path / "mine"), store, HubOptions(precision="int4"), notes)


def test_a_local_checkpoint_is_converted_once_even_offline(tmp_path, store, notes, packer) -> None:
    file = tmp_path / "My Model.gguf"
    file.write_bytes(b"GGUF one")
    offline = HubOptions(offline=True)
    first = open_bundle(str(file), store, offline, notes, packer)
    assert open_bundle(str(file), store, offline, notes, packer) == first
    assert len(packer.asked) == 1
    assert first.name.startswith("my-model-")
    # Where it lay on this machine is nobody's business.
    assert manifest.read(first).source.reference == "My Model.gguf"
    assert file.exists()
    file.write_bytes(b"GGUF another")
    assert open_bundle(str(file), store, offline, notes, packer) != first


def test_a_hugging_face_folder_is_converted(tmp_path, store, notes, packer) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    made = open_bundle(str(folder), store, ONLINE, notes, packer)
    assert (made / "onnx/model.onnx_data").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("absent.gguf", NotFound, "check the path"),
        ("Qwen/Qwen3-0.6B", NotFound, "write hf:Qwen/Qwen3-0.6B"),
        ("./empty", NotFound, "neither edgellm.json nor config.json"),
        ("./pytorch_model.bin", UsageError, "pickled weights are never read"),
        ("./notes.txt", UsageError, "not a GGUF file"),
    ],
)
def test_a_path_that_is_no_model_is_one_line(
    name, kind, words, tmp_path, store, notes, packer, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("pytorch_model.bin").write_bytes(b"")
    Path("notes.txt").write_bytes(b"")
    with pytest.raises(kind, match=words):
        open_bundle(name, store, ONLINE, notes, packer)


def test_a_precision_is_a_bundle_of_its_own(hub, store, notes, packer) -> None:
    exact = open_bundle("hf:org/tiny", store, ONLINE, notes, packer)
    small = open_bundle("hf:org/tiny", store, HubOptions(precision="int4"), notes, packer)
    assert (exact.name, small.name) == ("org--tiny", "org--tiny-int4")
    assert [asked[2] for asked in packer.asked] == [None, "int4"]
    assert find_bundle("org--tiny-int4", store) == small


@pytest.mark.parametrize("precision", ["", "INT4", "a" * 17, "int 4"])
def test_a_strange_precision_is_refused(precision: str) -> None:
    with pytest.raises(UsageError):
        HubOptions(precision=precision)


def test_the_store_knows_no_precision_by_the_path_of_a_recipe(store, notes, packer) -> None:
    options = HubOptions(precision="./my.toml")
    with pytest.raises(UsageError, match=r"edgellm export .* --precision \./my\.toml"):
        open_bundle("hf:org/tiny", store, options, notes, packer)
    assert not store.home.exists()


def test_a_missing_exporter_is_said_before_anything_is_fetched(
    hub, store, notes, monkeypatch
) -> None:
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgellm\[export\]'"):
        open_bundle("hf:org/tiny", store, ONLINE, notes)
    assert hub.asked == []


class Failing(Packer):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def convert(self, job, out) -> None:
        super().convert(job, out)
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Corrupt("the self-check disagrees"), Corrupt),
        (OSError(28, "No space left on device"), StorageFailed),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_conversion_publishes_nothing_and_keeps_the_download(
    hub, store, notes, packer, error, kind
) -> None:
    with pytest.raises(kind):
        open_bundle("hf:org/tiny", store, ONLINE, notes, Failing(error))
    assert store.names() == []
    assert list((store.home / "tmp").iterdir()) == []
    hub.asked.clear()
    open_bundle("hf:org/tiny", store, ONLINE, notes, packer)
    assert [asked.path for asked in hub.asked] == ["/api/models/org/tiny"]


def test_a_converter_that_lies_about_its_files_publishes_nothing(hub, store, notes) -> None:
    class Short(Packer):
        def convert(self, job, out) -> None:
            super().convert(job, out)
            (out / "onnx/model.onnx_data").write_bytes(b"less")

    with pytest.raises(Corrupt):
        open_bundle("hf:org/tiny", store, ONLINE, notes, Short())
    assert store.names() == []


PULL = """
import sys, time
from pathlib import Path
from hub_fakes import Notes, Packer
from edgellm.hub import HubOptions, Store, open_bundle

class Slow(Packer):
    def convert(self, job, out):
        (out / "half").write_text("made")
        print("converting", flush=True)
        time.sleep(float(sys.argv[2]))
        super().convert(job, out / ".." / out.name)
        (out / "half").unlink()

notes = Notes()
print(open_bundle("hf:org/tiny", Store(Path(sys.argv[1])), HubOptions(), notes, Slow()))
print("\\n".join(notes.lines), file=sys.stderr)
"""


def pull(store: Store, seconds: float = 0.0) -> subprocess.Popen[str]:
    return start_python(PULL, str(store.home), str(seconds))


def weight_requests(server: Server) -> list[str | None]:
    asked = [a for a in server.asked if a.path.endswith("model.safetensors")]
    return [a.headers.get("range") for a in asked]


def test_killed_while_converting_nothing_is_loadable_and_the_next_run_cleans_up(hub, store) -> None:
    child = pull(store, 60)
    assert child.stdout is not None
    assert child.stdout.readline() == "converting\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert store.names() == []
    (remnant,) = (store.home / "tmp").iterdir()
    out, err = pull(store).communicate(timeout=60)
    assert out.splitlines()[-1] == str(store.home / "models" / "org--tiny"), err
    assert not remnant.exists()
    assert weight_requests(hub) == [None]


def test_killed_while_fetching_the_next_run_goes_on(hub, store) -> None:
    hub.chunk_pause = 0.02
    child = pull(store)
    hub.wait_for(300_000)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert store.names() == []
    (part,) = store.home.rglob("model.safetensors.part")
    kept = part.stat().st_size
    hub.chunk_pause = 0.0
    out, err = pull(store).communicate(timeout=60)
    assert out.splitlines()[-1] == str(store.home / "models" / "org--tiny"), err
    assert weight_requests(hub) == [None, f"bytes={kept}-"]
    assert (store.home / "models/org--tiny/onnx/model.onnx_data").read_bytes() == TENSORS


def test_two_processes_share_one_download(hub, store) -> None:
    hub.chunk_pause = 0.5  # until the second one waits, however slow the machine is
    first = pull(store)
    hub.wait_for(100_000)
    with pull(store) as second:
        assert f"waiting for process {first.pid} " in second.stderr.readline()
        hub.chunk_pause = 0.0
        output = [first.communicate(timeout=60)[0], second.stdout.read()]
    folders = {out.splitlines()[-1] for out in output}
    assert folders == {str(store.home / "models" / "org--tiny")}
    assert weight_requests(hub) == [None]
    assert hub.sent_bytes < 1.1 * len(TENSORS) + 10_000
    assert sum(out.count("converting") for out in output) == 1
    assert second.returncode == 0


@pytest.mark.parametrize("reference", ["../../etc", "hf:../..", "a/../../b.gguf", "con", "x" * 500])
def test_a_hostile_reference_writes_nothing(reference, store, notes, packer) -> None:
    with pytest.raises(EdgellmError) as caught:
        open_bundle(reference, store, ONLINE, notes, packer)
    assert "\n" not in str(caught.value)
    assert not store.home.exists()


def test_opening_what_is_there_loads_neither_a_web_client_nor_the_exporter(store) -> None:
    make_bundle(store.home / "models" / "tiny", "tiny", Source("here"))
    script = """
import sys
from pathlib import Path
from edgellm.hub import HubOptions, Silent, Store, open_bundle
open_bundle("tiny", Store(Path(sys.argv[1])), HubOptions(), Silent())
heavy = {"urllib.request", "ssl", "zipfile", "subprocess", "huggingface_hub", "numpy", "tqdm"}
print(sorted(heavy & set(sys.modules)))
"""
    out, err = start_python(script, str(store.home)).communicate(timeout=30)
    assert out.strip() == "[]", err


def test_progress_is_silent_in_a_pipe_apart_from_notices(capsys) -> None:
    from edgellm.hub import Terminal

    terminal = Terminal()
    with terminal.meter("x", 10) as meter:
        meter(10)
    terminal.notice("one\x1b[2J\nline")
    caught = capsys.readouterr()
    assert (caught.out, caught.err) == ("", "one [2J line\n")


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_are_counted_on_a_terminal_with_the_time_left(capsys) -> None:
    from edgellm.hub import Terminal

    screen = Tty()
    with Terminal(screen).steps("converting layers", 30) as show:
        show(0)
        time.sleep(0.2)  # longer than the bar waits between two looks
        show(12)
    assert re.search(r"converting layers:  40%.* 12/30, \d\d:\d\d left", screen.getvalue())
    with Terminal().steps("converting layers", 30) as show:
        show(30)
    assert capsys.readouterr() == ("", "")


def test_a_bar_may_go_back() -> None:
    from edgellm.hub import Terminal

    screen = Tty()
    terminal = Terminal(screen)
    with terminal.meter("weights", 2_000_000) as meter:
        meter(1_500_000)
        terminal.notice("starting again")
        meter(0)
        meter(2_000_000)
    assert "weights" in screen.getvalue()
    assert "starting again\n" in screen.getvalue()
