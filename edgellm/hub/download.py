"""One file over HTTP(S): resumed, hashed while it arrives, durable when it is there.

part kept? ─▶ Range + If-Range ─▶ 206 go on │ 200 start again │ 416 start again
cut or stalled ─▶ wait, resume, a bounded number of times
hash differs ─▶ a resumed file is fetched once more from zero, a fresh one is deleted: Corrupt
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from edgellm.errors import Corrupt, NotFound, Unreachable, UsageError
from edgellm.hub.disk import CHUNK_BYTES, make_folder, megabytes, need_space, sha256_of
from edgellm.hub.part import Part
from edgellm.hub.progress import Meter, Progress
from edgellm.hub.web import extent, get, validator

# A connection that brought this much was worth having: its end does not count as a failure.
WORTHWHILE_BYTES = 1 << 20
# What retrying may cure (RFC 9110): timeout, too early, too many, and the server's own trouble.
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# The server wants something from us that pip or a login may have and this module has not.
BARRED_STATUS = frozenset({401, 403, 407})


class AccessDenied(Unreachable):
    """The server answers, but not to us: credentials, a proxy or an unknown certificate."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A file on a server; `sha256` (lower-case hex) and `size_bytes` are enforced when known."""

    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise UsageError(f"cannot download {self.url!r}: only http and https are spoken")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or self.url


@dataclass(frozen=True, slots=True)
class Patience:
    """`attempts` failures in a row are the end; the pause doubles from `backoff_seconds`."""

    attempts: int = 5
    backoff_seconds: float = 0.5
    stall_seconds: float = 30.0


class _Cut(Exception):
    """The connection ended early; the bytes so far are good."""


def download(blob: Blob, target: Path, progress: Progress, patience: Patience | None = None) -> str:
    """The sha256 of `target`, which holds the whole blob; nothing is fetched when it did already.

    Raises Unreachable (what arrived is kept for the next call), NotFound, Corrupt (hash or size
    is not the expected one; nothing is kept) and StorageFailed (what arrived is kept).
    The caller holds a lock on `target`.
    """
    make_folder(target.parent)
    if target.is_file():
        found = sha256_of(target)
        if blob.sha256 in (found, None) and blob.size_bytes in (target.stat().st_size, None):
            return found
    with Part(target, blob.url) as part, progress.meter(target.name, blob.size_bytes) as meter:
        resumed = part.resume(blob.size_bytes, blob.sha256 is not None) > 0
        meter(part.length)
        transfer = _Transfer(blob, part, meter, patience or Patience())
        transfer.run()
        if resumed and blob.sha256 not in (part.sha256, None):
            progress.notice(f"the kept part of {target.name} was damaged; fetching it again")
            part.restart()
            transfer.run()
        if blob.sha256 is not None:
            part.require(blob.sha256, f"{target.name} from {blob.host}")
        return part.publish()


@dataclass(slots=True)
class _Transfer:
    blob: Blob
    part: Part
    meter: Meter
    patience: Patience
    total: int | None = None
    reached: bool = False

    def run(self) -> None:
        """Requests until the part is whole."""
        self.total = self.blob.size_bytes
        failures = 0
        while not self.whole():
            before = self.part.length
            try:
                self.request()
                return
            except _Cut as cut:
                gained = self.part.length - before
                failures = 0 if gained >= WORTHWHILE_BYTES else failures + 1
                # A host that never answered is given one more chance, not minutes.
                allowed = self.patience.attempts if self.reached else 2
                if failures >= min(allowed, self.patience.attempts):
                    raise self.gave_up(cut) from cut
                time.sleep(self.patience.backoff_seconds * 2 ** min(failures, 6))

    def whole(self) -> bool:
        if self.blob.sha256 is not None and self.part.sha256 == self.blob.sha256:
            return True
        return self.part.length > 0 and self.part.length == self.total

    def gave_up(self, cut: _Cut) -> Unreachable:
        kept = f"; {megabytes(self.part.length)} are kept, run it again to go on"
        return Unreachable(
            f"{self.blob.host} cannot be reached: {cut}{kept if self.part.length else ''}"
        )

    def request(self) -> None:
        """One GET; returns when the body has ended where it should, else raises _Cut."""
        part = self.part
        if not (part.validator or self.blob.sha256):
            # Nothing could tell a mixture of two versions from the file.
            part.restart()
        headers = {"User-Agent": "edgellm", "Accept-Encoding": "identity", **self.blob.headers}
        if part.length:
            headers["Range"] = f"bytes={part.length}-"
            if part.validator:
                headers["If-Range"] = part.validator
        with self.open(headers) as response:
            self.reached = True
            self.begin(response.status, response.headers)
            try:
                while chunk := response.read1(CHUNK_BYTES):
                    self.accept(chunk)
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(_reason(error)) from error
        if self.total is not None and part.length < self.total:
            raise _Cut(f"the connection ended {megabytes(self.total - part.length)} too early")

    def open(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        try:
            return get(self.blob.url, headers, self.patience.stall_seconds)
        except HTTPError as error:
            with error:
                raise self.refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise AccessDenied(
                    f"{self.blob.host} shows a certificate this Python does not trust: "
                    f"{reason.verify_message}; set SSL_CERT_FILE to your authority's file"
                ) from error
            raise _Cut(_reason(reason)) from error

    def refusal(self, error: HTTPError) -> Exception:
        self.reached = True
        if error.code == 416:
            self.part.restart()
            return _Cut("the server refused to continue the kept part")
        if error.code in PASSING_STATUS:
            return _Cut(f"HTTP {error.code} {error.reason}")
        what = f"{self.blob.host} answers HTTP {error.code} {error.reason}"
        if error.code in BARRED_STATUS:
            return AccessDenied(f"{what}; log in or check the reference")
        return NotFound(f"{what} for {urlsplit(self.blob.url).path}; check the reference")

    def begin(self, status: int, headers: Message) -> None:
        """Decides from the head of the answer whether its body continues or replaces the part."""
        part = self.part
        start, total = extent(status, headers)
        version = validator(headers)
        if headers.get("Content-Encoding", "identity") != "identity" or status not in (200, 206):
            raise NotFound(f"{self.blob.host} answers in a form we did not ask for; try later")
        other_version = status == 206 and None not in (version, part.validator)
        if start != part.length or (other_version and version != part.validator):
            part.restart()
            if status == 206:
                raise _Cut("the server continued something else")
        if total is not None:
            if self.blob.size_bytes not in (total, None):
                raise self.wrong_size(total)
            self.total = total
            need_space(part.path, total - part.length)
        part.remember(version or part.validator)

    def accept(self, chunk: bytes) -> None:
        if self.total is not None and self.part.length + len(chunk) > self.total:
            raise self.wrong_size(self.part.length + len(chunk))
        self.part.append(chunk)
        self.meter(self.part.length)

    def wrong_size(self, found: int) -> Corrupt:
        self.part.discard()
        return Corrupt(
            f"{self.part.target.name} from {self.blob.host} has {found} bytes or more, expected "
            f"{self.blob.size_bytes or self.total}; the file was deleted: distrust the source"
        )


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came for a while"
    return str(error) or type(error).__name__
