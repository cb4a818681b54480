from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_fakes import Fault, Notes, Server, sha256, start_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import Corrupt, NotFound, StorageFailed, Unreachable, UsageError
from edgellm.hub import disk
from edgellm.hub.download import AccessDenied, Blob, Patience, download

BODY = random.Random(7).randbytes(700_001)
HASH = sha256(BODY)
HASTY = Patience(attempts=4, backoff_seconds=0.001, stall_seconds=0.3)


@pytest.fixture
def blob(server: Server) -> Blob:
    server.files["/model"] = BODY
    server.etags["/model"] = '"one"'
    return Blob(f"{server.url}/model", len(BODY), HASH)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "model"


def part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def leave_part(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part(target).write_bytes(data)


def only_file(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_whole_file_arrives_and_nothing_else_stays(blob, target, notes) -> None:
    assert download(blob, target, notes, HASTY) == HASH
    assert target.read_bytes() == BODY
    assert only_file(target)
    assert notes.done[-1] == len(BODY)


def test_a_file_that_is_there_is_not_fetched_again(blob, target, notes, server) -> None:
    download(blob, target, notes, HASTY)
    assert download(blob, target, notes, HASTY) == HASH
    assert len(server.asked) == 1


def test_a_damaged_file_under_the_final_name_is_fetched_again(blob, target, notes) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(b"x" * len(BODY))
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY


def test_a_cut_connection_is_resumed_where_it_ended(blob, target, notes, server) -> None:
    server.faults = [Fault(cut_at=100_000), Fault(cut_at=300_000)]
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-", "bytes=300000-"]
    assert server.asked[1].headers["if-range"] == '"one"'
    assert server.sent_bytes == len(BODY)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(0, len(BODY)), max_size=3), known=st.booleans())
def test_cut_anywhere_the_bytes_are_right(
    cuts: list[int], known: bool, blob: Blob, target: Path, notes: Notes, server: Server
) -> None:
    target.unlink(missing_ok=True)
    server.faults = [Fault(cut_at=cut) for cut in sorted(cuts)]
    download(blob if known else Blob(blob.url), target, notes, HASTY)
    assert target.read_bytes() == BODY
    server.faults = []


def test_too_many_cuts_end_in_one_line_and_the_next_call_goes_on(
    blob, target, notes, server
) -> None:
    server.faults = [Fault(cut_at=200_000 + n) for n in range(4)]
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1.*0\.2 MB are kept"):
        download(blob, target, notes, HASTY)
    assert not target.exists()
    server.asked.clear()
    download(blob, target, notes, HASTY)
    assert server.ranges() == ["bytes=200003-"]
    assert target.read_bytes() == BODY


def test_without_any_hash_the_kept_version_is_checked_by_its_etag(target, notes, server) -> None:
    server.files["/model"], server.etags["/model"] = BODY, '"one"'
    unknown = Blob(f"{server.url}/model")
    server.faults = [Fault(cut_at=200_000)] * 4
    with pytest.raises(Unreachable):
        download(unknown, target, notes, HASTY)
    server.asked.clear()
    assert download(unknown, target, notes, HASTY) == HASH
    assert server.ranges() == ["bytes=200000-"]


def test_an_etag_that_changed_between_two_runs_starts_again(target, notes, server) -> None:
    server.files["/model"], server.etags["/model"] = BODY, '"one"'
    unknown = Blob(f"{server.url}/model")
    server.faults = [Fault(cut_at=200_000)] * 4
    with pytest.raises(Unreachable):
        download(unknown, target, notes, HASTY)
    server.files["/model"], server.etags["/model"] = BODY[::-1], '"two"'
    assert download(unknown, target, notes, HASTY) == sha256(BODY[::-1])


def test_an_etag_that_changes_mid_way_starts_again(target, notes, server) -> None:
    server.files["/model"], server.etags["/model"] = BODY, '"one"'

    def change(count: int) -> None:
        if count == 2:
            server.files["/model"], server.etags["/model"] = BODY[::-1], '"two"'

    server.on_request = change
    server.faults = [Fault(cut_at=200_000)]
    assert download(Blob(f"{server.url}/model"), target, notes, HASTY) == sha256(BODY[::-1])


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_what_cannot_be_told_apart_is_never_mixed(target, notes, server, etag) -> None:
    server.files["/model"] = BODY
    if etag:
        server.etags["/model"] = etag
    server.faults = [Fault(cut_at=200_000)]
    assert download(Blob(f"{server.url}/model"), target, notes, HASTY) == HASH
    assert server.ranges() == [None, None]


def test_200_to_a_range_starts_again(blob, target, notes, server) -> None:
    leave_part(target, BODY[:50_000])
    server.faults = [Fault(ignore_range=True)]
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY


def test_206_from_the_wrong_place_starts_again(blob, target, notes, server) -> None:
    leave_part(target, BODY[:50_000])
    server.faults = [Fault(wrong_start=True)]
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY
    assert server.ranges() == ["bytes=50000-", None]


def test_416_starts_again(target, notes, server) -> None:
    server.files["/model"] = BODY
    leave_part(target, BODY + b"more")
    assert download(Blob(f"{server.url}/model", sha256=HASH), target, notes, HASTY) == HASH
    assert server.ranges() == [f"bytes={len(BODY) + 4}-", None]


def test_a_partial_larger_than_the_file_starts_again(blob, target, notes, server) -> None:
    leave_part(target, BODY + b"more")
    download(blob, target, notes, HASTY)
    assert server.ranges() == [None]
    assert target.read_bytes() == BODY


def test_a_partial_of_exact_size_needs_no_request(blob, target, notes, server) -> None:
    leave_part(target, BODY)
    assert download(blob, target, notes, HASTY) == HASH
    assert server.asked == []
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("length", [50_000, len(BODY)])
def test_a_corrupt_partial_is_fetched_again_once(blob, target, notes, server, length) -> None:
    leave_part(target, b"\0" * length)
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY
    assert [line for line in notes.lines if "damaged" in line]


def test_a_wrong_hash_is_corrupt_and_nothing_stays(blob, target, notes, server) -> None:
    flipped = bytearray(BODY)
    flipped[345_678] ^= 1
    server.files["/model"] = bytes(flipped)
    with pytest.raises(Corrupt, match="sha256"):
        download(blob, target, notes, HASTY)
    assert list(target.parent.iterdir()) == []
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"!"])
@pytest.mark.parametrize("no_length", [False, True])
def test_a_wrong_length_never_becomes_a_file(blob, target, notes, server, body, no_length) -> None:
    server.files["/model"], server.no_length = body, no_length
    with pytest.raises((Corrupt, Unreachable)):
        download(blob, target, notes, HASTY)
    assert not target.exists()


def test_a_server_that_tells_no_length_is_read_to_its_end(target, notes, server) -> None:
    server.files["/model"], server.no_length = BODY, True
    assert download(Blob(f"{server.url}/model"), target, notes, HASTY) == HASH


def test_an_empty_file_is_a_file(target, notes, server) -> None:
    server.files["/empty"] = b""
    download(Blob(f"{server.url}/empty", 0), target, notes, HASTY)
    assert target.read_bytes() == b""


def test_a_stall_counts_as_a_cut(blob, target, notes, server) -> None:
    server.faults = [Fault(stall_at=300_000)]
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=300000-"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_waited_out(blob, target, notes, server, status) -> None:
    server.faults = [Fault(status=status)] * 2
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    ("status", "kind"), [(403, AccessDenied), (401, AccessDenied), (404, NotFound)]
)
def test_a_refusal_is_final_and_keeps_what_arrived(
    blob, target, notes, server, status, kind
) -> None:
    server.faults = [Fault(cut_at=100_000), Fault(status=status)]
    with pytest.raises(kind, match=str(status)):
        download(blob, target, notes, HASTY)
    assert part(target).stat().st_size == 100_000
    assert not target.exists()


def test_nobody_there_is_unreachable(tmp_path, notes) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 cannot be reached"):
        download(Blob("http://127.0.0.1:9/x"), tmp_path / "x", notes, HASTY)


def test_a_redirect_to_another_host_takes_no_secret_along(
    target: Path, notes: Notes, serve: Callable[[], Server]
) -> None:
    first, second = serve(), serve()
    second.files["/elsewhere"] = BODY
    first.faults = [
        Fault(redirect=f"{second.url}/elsewhere"),
        Fault(redirect=f"{second.url}/elsewhere"),
    ]
    second.faults = [Fault(cut_at=100_000)]
    secret = Blob(f"{first.url}/model", sha256=HASH, headers={"Authorization": "Bearer hidden"})
    download(secret, target, notes, HASTY)
    assert target.read_bytes() == BODY
    assert all(asked.headers["authorization"] == "Bearer hidden" for asked in first.asked)
    assert all("authorization" not in asked.headers for asked in second.asked)
    assert second.ranges() == [None, "bytes=100000-"]


def test_a_redirect_on_the_same_host_keeps_the_login(target, notes, server) -> None:
    server.files["/there"] = BODY
    server.faults = [Fault(redirect="/there")]
    secret = Blob(f"{server.url}/model", headers={"Authorization": "Bearer hidden"})
    download(secret, target, notes, HASTY)
    assert server.asked[1].headers["authorization"] == "Bearer hidden"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(UsageError):
        Blob(url)


def test_a_redirect_to_a_file_is_refused(target, notes, server) -> None:
    server.faults = [Fault(redirect="file:///etc/passwd")] * 9
    with pytest.raises((Unreachable, NotFound)):
        download(Blob(f"{server.url}/model"), target, notes, HASTY)
    assert not target.exists()


def test_too_little_room_is_said_before_the_first_byte(
    blob, target, notes, server, monkeypatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: len(BODY))
    with pytest.raises(StorageFailed, match=r"0\.7 MB are needed .* 0\.7 MB are free"):
        download(blob, target, notes, HASTY)
    assert not target.exists()


FILE_LIMIT = """
import resource, sys
from pathlib import Path
from edgellm.errors import StorageFailed
from edgellm.hub.download import Blob, download
from edgellm.hub.progress import Silent
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    download(Blob(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]), Silent())
except StorageFailed as error:
    print(error)
"""


def test_a_disk_that_fills_up_keeps_what_arrived_and_says_how_much(
    blob, target, notes, server
) -> None:
    child = start_python(FILE_LIMIT, blob.url, str(len(BODY)), HASH, str(target))
    out, err = child.communicate(timeout=60)
    assert err == ""
    assert "limit on file size" in out
    assert "0.3 MB are kept" in out
    assert part(target).stat().st_size == 300_000
    server.asked.clear()
    download(blob, target, notes, HASTY)
    assert server.ranges() == ["bytes=300000-"]
    assert target.read_bytes() == BODY


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk: mounting a tmpfs needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_keeps_what_arrived(small_disk, notes, server) -> None:
    body = random.Random(1).randbytes(900_000)
    server.files["/model"], server.etags["/model"] = body, '"one"'
    hog = small_disk / "hog"

    def fill(count: int) -> None:
        hog.write_bytes(b"x" * 500_000)

    # The space is taken after the check, as another program would.
    server.no_length, server.on_request = True, fill
    blob, target = Blob(f"{server.url}/model", sha256=sha256(body)), small_disk / "model"
    with pytest.raises(StorageFailed, match=r"no space left .* are kept"):
        download(blob, target, notes, HASTY)
    kept = part(target).stat().st_size
    assert 0 < kept < len(body)
    hog.unlink()
    server.on_request = lambda count: None
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == body
    assert server.ranges()[-1] == f"bytes={kept}-"


PLAIN = """
import sys
from pathlib import Path
from edgellm.hub.download import Blob, download
from edgellm.hub.progress import Silent
print(download(Blob(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]), Silent()))
"""


def test_a_killed_download_is_resumed_by_the_next_process(blob, target, notes, server) -> None:
    server.chunk_pause = 0.02
    child = start_python(PLAIN, blob.url, str(len(BODY)), HASH, str(target))
    server.wait_for(200_000)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    kept = part(target).stat().st_size
    assert 0 < kept < len(BODY)
    assert not target.exists()
    server.chunk_pause = 0.0
    server.asked.clear()
    child = start_python(PLAIN, blob.url, str(len(BODY)), HASH, str(target))
    out, err = child.communicate(timeout=60)
    assert (out.strip(), err) == (HASH, "")
    assert server.ranges() == [f"bytes={kept}-"]
    assert target.read_bytes() == BODY


STEPS = ["fsync", "replace"]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_the_last_steps_leaves_no_file_or_the_right_one(
    blob, target, notes, server, step
) -> None:
    crash = f"import os\nos.{step} = lambda *args: os._exit(9)\n" + PLAIN
    child = start_python(crash, blob.url, str(len(BODY)), HASH, str(target))
    child.communicate(timeout=60)
    assert child.returncode == 9
    assert not target.exists()
    server.asked.clear()
    download(blob, target, notes, HASTY)
    assert target.read_bytes() == BODY
    assert server.asked == []
