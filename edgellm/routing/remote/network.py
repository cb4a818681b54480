"""One HTTP exchange: to the one host that was named, over verified TLS, within the call's limits.

httpcore, the engine of httpx, speaks HTTP/1.1. Its network backend is ours, because only there can
a deadline hold for every read, a name be looked up within a limit, and a host be refused that is
not the user's. No redirects, no cookies, no compression (so no bombs), no kept connections: what
is closed is closed.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore

from edgellm.errors import Refused
from edgellm.hub.web import trust
from edgellm.routing.remote.options import RemoteOptions, is_loopback
from edgellm.routing.remote.watch import Trouble, Watch


@dataclass(frozen=True, slots=True)
class Reply:
    """`headers` by lower-case name; `chunks` raise Trouble when the connection breaks."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@contextmanager
def exchange(options: RemoteOptions, path: str, body: bytes, watch: Watch) -> Iterator[Reply]:
    """The reply to a POST of `body`; its connection is closed when the block is left.

    Raises Trouble: connect, tls, first-token, total, cut.
    """
    proxy = _proxy(options) if options.use_proxies else None
    allowed = {(options.host, options.port)}
    if proxy is not None:
        allowed = {(proxy.url.host.decode(), proxy.url.port or 80)}
    certificates = trust() if options.url.startswith("https:") else None
    wire = _Wire(watch, allowed)
    try:
        with (
            httpcore.ConnectionPool(certificates, proxy, network_backend=wire) as pool,
            pool.stream("POST", options.url + path, headers=_headers(options), content=body) as got,
        ):
            headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in got.headers}
            yield Reply(got.status, headers, _chunks(got.iter_stream()))
    except httpcore.ProxyError as error:
        raise Trouble("connect", f"the proxy refuses: {error}") from error
    except (httpcore.ProtocolError, httpcore.NetworkError) as error:
        raise Trouble("cut", _plain(error), again=True) from error


def _chunks(stream: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from stream
    except (httpcore.ProtocolError, httpcore.NetworkError) as error:
        raise Trouble("cut", _plain(error), again=True) from error


def _plain(error: Exception) -> str:
    if "peer closed connection" in str(error) or "disconnected" in str(error):
        return "the connection ended too early"
    return "the connection broke" if isinstance(error, httpcore.NetworkError) else "no proper HTTP"


def _headers(options: RemoteOptions) -> list[tuple[str, str]]:
    secret = options.secret
    headers = {
        "User-Agent": f"edgellm/{_version()}",
        "Content-Type": "application/json",
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    if secret is not None:
        headers["Authorization"] = f"Bearer {secret.reveal()}"
    return list(headers.items())


@cache
def _version() -> str:
    try:
        return version("edgellm")
    except PackageNotFoundError:
        return "0"


def _proxy(options: RemoteOptions) -> httpcore.Proxy | None:
    """The proxy that the environment names for this remote, unless it names an exception."""
    address = urllib.request.getproxies().get(urlsplit(options.url).scheme)
    if not address or is_loopback(options.host) or urllib.request.proxy_bypass(options.host):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise Refused("only http:// and https:// proxies are spoken; unset the proxy variable")
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return httpcore.Proxy(f"{parts.scheme}://{host}:{port}", auth=auth)


class _Wire(httpcore.NetworkBackend):
    """Makes connections, to `allowed` alone."""

    def __init__(self, watch: Watch, allowed: set[tuple[str, int]]) -> None:
        self._watch = watch
        self._allowed = allowed

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        if (host.lower().strip("[]"), port) not in self._allowed:
            raise Refused(f"{host}:{port} is not the remote that was named; nothing was sent")
        self._watch.connecting()
        last = Trouble("connect", f"{host} has no address")
        addresses = self._addresses(host, port)
        for tried, (family, address) in enumerate(addresses):
            # A dead IPv6 route must leave time for IPv4: what is left is shared.
            share_s = self._watch.wait_s() / (len(addresses) - tried)
            try:
                return _Stream(self._connect(family, address, share_s), self._watch)
            except TimeoutError:
                last = self._watch.expired()
            except OSError as error:
                there = isinstance(error, ConnectionError)
                why = (error.strerror or str(error)).lower()
                last = Trouble("refused" if there else "connect", why, again=True)
        raise last

    def _connect(self, family: int, address: Any, limit_s: float) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._watch.connecting(sock)
            sock.settimeout(limit_s)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def _addresses(self, host: str, port: int) -> list[tuple[int, Any]]:
        """Where a host is. The system's look-up knows no limit, so another thread waits for it."""
        answers: queue.SimpleQueue[list[Any] | BaseException] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=look_up, name=f"look up {host}", daemon=True).start()
        try:
            found = answers.get(timeout=self._watch.wait_s())
        except queue.Empty:
            raise self._watch.expired() from None
        if isinstance(found, OSError):
            raise Trouble("connect", f"the name {host} is not known here") from found
        if isinstance(found, BaseException):
            raise found
        return [(family, address) for family, _, _, _, address in found]


class _Stream(httpcore.NetworkStream):
    """A connection whose every wait ends with the call's limits; httpcore's own are not used."""

    def __init__(self, sock: socket.socket, watch: Watch, ready: bool = False) -> None:
        self._sock = sock
        self._watch = watch
        self._ready = ready

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._begin()
        try:
            self._sock.settimeout(self._watch.wait_s())
            return self._sock.recv(max_bytes)
        except TimeoutError as error:
            raise self._watch.expired() from error
        except OSError as error:
            self._watch.wait_s()
            raise Trouble("cut", "the connection broke", again=True) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._begin()
        view = memoryview(buffer)
        try:
            while view:
                self._sock.settimeout(self._watch.wait_s())
                view = view[self._sock.send(view) :]
        except TimeoutError as error:
            raise self._watch.expired() from error
        except OSError as error:
            # httpcore then reads what a server has said before it closed, a 413 for example.
            raise httpcore.WriteError("the connection broke") from error

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        # The handshake comes after the wrapping, which takes the plain socket away from the watch.
        wrapped = ssl_context.wrap_socket(
            self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        try:
            self._watch.connecting(wrapped)
            wrapped.settimeout(self._watch.wait_s())
            wrapped.do_handshake()
        except BaseException as error:
            wrapped.close()
            if isinstance(error, OSError):
                raise self._no_tls(error) from error
            raise
        return _Stream(wrapped, self._watch)

    def _no_tls(self, error: OSError) -> Trouble:
        if self._watch.cancelled or isinstance(error, TimeoutError):
            return self._watch.expired()
        if isinstance(error, ssl.SSLCertVerificationError):
            return Trouble("tls", f"its certificate is not trusted: {error.verify_message}")
        return Trouble("tls", "no TLS connection can be made")

    def close(self) -> None:
        self._sock.close()

    def _begin(self) -> None:
        """The first read or write after TCP and TLS ends the time for connecting."""
        if not self._ready:
            self._watch.connected()
            self._ready = True
