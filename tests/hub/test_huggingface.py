"""The Hugging Face Hub: its API and files served on loopback, asked by the real library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hub_fakes import Fault, Notes, Server, sha256

from edgellm.errors import Corrupt, Incompatible, MissingExtra, NotFound, Unreachable
from edgellm.hub.aliases import SourceRow
from edgellm.hub.fetch import Fetched, fetch
from edgellm.hub.reference import HfRef

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSORS = b"tensors" * 30_000
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{} ",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "model.safetensors": TENSORS,
    "pytorch_model.bin": b"pickle",
    "modeling_x.py": b"raise SystemExit",
    "README.md": b"# x",
    "onnx/model.onnx": b"onnx",
    "original/consolidated.safetensors": TENSORS,
    "../escape.json": b"{}",
    "consolidated.safetensors": TENSORS,
}


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs edgellm[export]")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    repository(server, FILES)
    return server


def repository(server: Server, files: dict[str, bytes], wrong_hash: bool = False) -> None:
    siblings = []
    for name, body in files.items():
        server.files[f"/org/tiny/resolve/{COMMIT}/{name}"] = body
        found: dict[str, object] = {"rfilename": name, "size": len(body)}
        if name.endswith((".safetensors", ".gguf")):
            digest = "0" * 64 if wrong_hash else sha256(body)
            found["lfs"] = {"size": len(body), "sha256": digest, "pointerSize": 130}
        siblings.append(found)
    answer = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": ["license:mit"]}
    for path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/v1"):
        server.files[path] = json.dumps(answer).encode()


def get(folder: Path, notes: Notes, revision: str | None = None) -> Fetched:
    return fetch(SourceRow(HfRef("org", "tiny", revision)), folder, notes)


@pytest.mark.parametrize("revision", [None, "v1"])
def test_weights_and_texts_arrive_and_nothing_that_could_run(
    hub, notes, tmp_path, revision
) -> None:
    fetched = get(tmp_path / "d", notes, revision)
    names = {path.name for path in fetched.path.iterdir()}
    assert names == {
        "config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", "model.safetensors",
    }  # fmt: skip
    assert fetched.origin.revision == COMMIT
    assert fetched.origin.licence == "mit"
    assert fetched.origin.sha256 == sha256(TENSORS)
    assert (fetched.path / "model.safetensors").read_bytes() == TENSORS


def test_a_cut_file_is_resumed(hub, notes, tmp_path) -> None:
    path = f"/org/tiny/resolve/{COMMIT}/model.safetensors"

    def cut(count: int) -> None:
        if hub.asked[-1].path == path and len([a for a in hub.asked if a.path == path]) == 1:
            hub.faults = [Fault(cut_at=100_000)]

    hub.on_request = cut
    get(tmp_path, notes)
    asked = [a.headers.get("range") for a in hub.asked if a.path == path]
    assert asked == [None, "bytes=100000-"]


def test_a_second_call_fetches_no_file_twice(hub, notes, tmp_path) -> None:
    get(tmp_path, notes)
    hub.asked.clear()
    get(tmp_path, notes)
    assert [asked.path for asked in hub.asked] == ["/api/models/org/tiny"]


def test_the_hash_the_hub_lists_is_checked(hub, notes, tmp_path) -> None:
    repository(hub, FILES, wrong_hash=True)
    with pytest.raises(Corrupt, match="sha256"):
        get(tmp_path, notes)
    assert not list(tmp_path.rglob("model.safetensors*"))


def test_the_token_goes_to_the_hub_only(hub, serve, notes, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_hidden")
    cdn = serve()
    cdn.files["/blob"] = TENSORS
    path = f"/org/tiny/resolve/{COMMIT}/model.safetensors"

    def redirect(count: int) -> None:
        if hub.asked[-1].path == path:
            hub.faults = [Fault(redirect=f"{cdn.url}/blob")]

    hub.on_request = redirect
    get(tmp_path, notes)
    assert hub.asked[-1].headers["authorization"] == "Bearer hf_hidden"
    assert "authorization" not in cdn.asked[0].headers


def test_the_best_gguf_is_taken_and_said(hub, notes, tmp_path) -> None:
    names = ["m.Q2_K.gguf", "m.Q4_0.gguf", "m.q8_0.gguf", "m-00001-of-00002.gguf", "config.json"]
    repository(hub, {name: name.encode() for name in names})
    fetched = get(tmp_path, notes)
    assert fetched.path.name == "m.q8_0.gguf"
    assert any("m.q8_0.gguf" in line for line in notes.lines)


def test_a_repository_of_pickles_is_refused(hub, notes, tmp_path) -> None:
    repository(hub, {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(Incompatible, match="pickled weights"):
        get(tmp_path, notes)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, NotFound, "does not exist"),
        (401, NotFound, "private, gated or absent"),
        (403, NotFound, "private, gated or absent"),
        (500, Unreachable, "HTTP 500"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, notes, tmp_path, status, kind, words) -> None:
    hub.faults = [Fault(status=status)] * 10
    with pytest.raises(kind, match=words) as caught:
        get(tmp_path, notes)
    assert "\n" not in str(caught.value)


def test_no_hub_at_all_is_unreachable(hub, notes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="cannot be reached"):
        get(tmp_path, notes)


def test_a_missing_library_names_the_extra(notes, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgellm\[export\]'"):
        get(tmp_path, notes)
