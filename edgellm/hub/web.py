"""One GET over HTTP(S) with the user's proxies and certificates, and how to read its head.

Nothing but http and https is spoken; a redirect to another host takes no secrets along.
"""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from functools import cache
from importlib.util import find_spec
from typing import IO, Any
from urllib.parse import urlsplit


def get(url: str, headers: Mapping[str, str], stall_seconds: float) -> http.client.HTTPResponse:
    """The answer to a GET, its body unread. Raises what urllib raises: OSError, HTTPException."""
    request = urllib.request.Request(url, headers=dict(headers))
    response: http.client.HTTPResponse = _opener().open(request, timeout=stall_seconds)
    return response


def extent(status: int, headers: Message) -> tuple[int, int | None]:
    """(first byte, whole size if told) of a body, from its Content-Range or Content-Length."""
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def validator(headers: Message) -> str | None:
    """What If-Range may carry: a strong ETag, else a date (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag")
    if etag is not None:
        return None if etag.startswith("W/") else str(etag)
    date = headers.get("Last-Modified")
    return None if date is None else str(date)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; secrets stay with the host they were meant for."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise urllib.error.URLError(f"{old.hostname} redirects to an unencrypted address")
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            followed.remove_header("Authorization")
            followed.remove_header("Cookie")
        return followed


def _opener() -> urllib.request.OpenerDirector:
    """HTTP(S), proxies from the environment, our redirects: no file:, no ftp:, no cookies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=trust()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


@cache
def trust() -> ssl.SSLContext:
    """The system's certificate authorities; certifi's where Python came without any (macOS)."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and find_spec("certifi"):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
