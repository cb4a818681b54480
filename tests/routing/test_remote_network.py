"""Connections: made only to the named host, verified, bounded, and closed from any thread."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch import Served

from edgellm.errors import EdgellmError, Refused
from edgellm.hub import web
from edgellm.routing.errors import AccessDenied, RemoteFailed
from edgellm.routing.remote import network
from edgellm.routing.remote.backend import RemoteBackend
from edgellm.routing.remote.circuit import Connectivity
from edgellm.routing.remote.network import exchange
from edgellm.routing.remote.options import Limits, RemoteOptions, Retry
from edgellm.routing.remote.watch import Watch
from edgellm.stream import Request, complete

KEY = "sk-test-0123456789abcdef"
PROMPT = "the text that nobody may read"
ASK = Request.user(PROMPT)
QUICK = Limits(connect_s=0.2, first_token_s=5, idle_s=5, total_s=10)
CERTIFICATE = Path(__file__).parent / "servers" / "selfsigned.pem"


def backend(url: str, limits: Limits = QUICK, **more: Any) -> RemoteBackend:
    options = RemoteOptions(url, "big", KEY, limits=limits, retry=Retry(2, 0.01, 0.02), **more)
    return RemoteBackend(options)


def failure(remote: RemoteBackend) -> RemoteFailed:
    with pytest.raises(RemoteFailed) as caught:
        next(remote.stream(ASK))
    return caught.value


def test_a_refused_connection_is_tried_again_and_not_billed(fault_server: Served) -> None:
    error = failure(backend(fault_server.url(port="refusing")))
    assert "connection refused (2 attempts)" in str(error)
    assert (error.attempts, error.maybe_billed) == (2, 0)


def test_a_refused_connection_is_no_dead_network(
    fault_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server that is down must not keep us from the others."""
    real = socket.getaddrinfo
    here = lambda host, *args, **kwargs: real("127.0.0.1", *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", here)
    view = Connectivity(down_after=1)
    url = f"https://down.example.com:{fault_server.ports['refusing']}/v1"
    remote = RemoteBackend(backend(url).options, None, view)
    assert "refused" in str(failure(remote))
    assert view.online


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a full queue wait in silence")
def test_a_connection_that_is_never_made_ends_with_its_limit(fault_server: Served) -> None:
    error = failure(backend(fault_server.url(port="hanging")))
    assert "no connection within 0.2 s" in str(error)
    assert (error.attempts, error.maybe_billed) == (1, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a full queue wait in silence")
def test_an_address_that_is_dead_leaves_time_for_the_next(
    fault_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [fault_server.ports[name] for name in ("refusing", "hanging", "main")]
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    found = [(*kind, ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    remote = backend("http://api.example.com/ok/v1", allow_plain_http=True)
    assert complete(remote.stream(ASK)).text.startswith("one two")


def test_a_tls_handshake_that_hangs_ends_with_the_limit_of_connecting(
    fault_server: Served,
) -> None:
    error = failure(backend(fault_server.url(port="silent", scheme="https")))
    assert "no connection within 0.2 s" in str(error)
    assert (error.attempts, error.maybe_billed) == (1, 0)


def test_a_server_that_speaks_no_tls_gets_nothing_to_read(fault_server: Served) -> None:
    error = failure(backend(fault_server.url(port="plaintext", scheme="https")))
    assert "no TLS connection can be made" in str(error)
    assert (error.attempts, error.maybe_billed) == (1, 0)


def test_an_unknown_certificate_is_refused_before_anything_is_sent(fault_server: Served) -> None:
    before = fault_server.state().get("ok~tls", {})
    error = failure(backend(fault_server.url("ok~tls", port="tls", scheme="https")))
    assert isinstance(error, AccessDenied)
    assert "certificate is not trusted" in str(error)
    assert (error.attempts, error.maybe_billed) == (1, 0)
    assert fault_server.state().get("ok~tls", {}) == before


def test_a_certificate_of_a_trusted_authority_is_accepted(
    fault_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(network, "trust", web.trust.__wrapped__)
    answer = complete(backend(fault_server.url("ok", port="tls", scheme="https")).stream(ASK))
    assert answer.text.startswith("one two")


def test_a_name_that_is_unknown_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure(backend("https://nowhere.invalid/v1"))
    assert "the name nowhere.invalid is not known here" in str(error)
    assert (error.attempts, error.maybe_billed) == (1, 0)


def test_a_name_look_up_that_hangs_ends_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    def hang(*args: object, **kwargs: object) -> list[object]:
        free.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        assert "no connection within 0.2 s" in str(failure(backend("https://nowhere.invalid/v1")))
    finally:
        free.set()


def test_the_wire_connects_to_no_other_host() -> None:
    wire = network._Wire(Watch(QUICK), {("api.example.com", 443)})
    for host, port in (("evil.example.com", 443), ("api.example.com", 80), ("127.0.0.1", 443)):
        with pytest.raises(Refused, match="is not the remote that was named; nothing was sent"):
            wire.connect_tcp(host, port)


@pytest.mark.parametrize("use", [False, True])
def test_proxies_of_the_environment_are_used_only_if_the_user_says_so(
    use: bool, fault_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is a port where nobody listens; the remote's own name is never looked up there."""
    monkeypatch.setenv(
        "https_proxy", f"http://user:word@127.0.0.1:{fault_server.ports['refusing']}"
    )

    def look_up(host: str, *args: object, **kwargs: object) -> list[object]:
        asked.append(host)
        return real(host, *args, **kwargs) if host == "127.0.0.1" else []

    asked: list[str] = []
    real: Callable[..., list[object]] = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    error = failure(backend("https://api.example.com/v1", use_proxies=use))
    assert set(asked) == {"127.0.0.1" if use else "api.example.com"}
    assert ("refused" in str(error)) == use
    assert "word" not in str(error)


def test_close_from_another_thread_wakes_a_read(fault_server: Served) -> None:
    events = backend(fault_server.url("silent~close")).stream(ASK)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.extend(events))
    thread.start()
    fault_server.wait_for("silent~close", "open", 1)
    events.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert got == []
    assert events.maybe_billed == 1
    fault_server.wait_for("silent~close", "open", 0)


def test_close_from_another_thread_wakes_a_read_over_tls(
    fault_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(network, "trust", web.trust.__wrapped__)
    events = backend(fault_server.url("silent~tls", port="tls", scheme="https")).stream(ASK)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.extend(events))
    thread.start()
    fault_server.wait_for("silent~tls", "open", 1)
    events.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert got == []
    fault_server.wait_for("silent~tls", "open", 0)


def test_close_from_another_thread_wakes_a_handshake(fault_server: Served) -> None:
    patient = replace(QUICK, connect_s=60, first_token_s=60, total_s=60)
    remote = backend(fault_server.url(port="silent", scheme="https"), limits=patient)
    events = remote.stream(ASK)
    thread = threading.Thread(target=lambda: list(events))
    before = fault_server.state()["*"]["connections"]
    thread.start()
    fault_server.wait_for("*", "connections", before + 1)
    events.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_close_from_another_thread_wakes_a_pause(fault_server: Served) -> None:
    patient = replace(QUICK, first_token_s=200, total_s=300)
    remote = backend(fault_server.url("429-60s~close"), limits=patient)
    events = remote.stream(ASK)
    thread = threading.Thread(target=lambda: list(events))
    thread.start()
    fault_server.wait_for("429-60s~close", "requests", 1)
    events.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_many_answers_at_a_time(fault_server: Served) -> None:
    remote = backend(fault_server.url("ok~many"))
    texts: list[str] = []
    ask = lambda: texts.append(complete(remote.stream(ASK)).text)  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(texts) == 8
    assert len(set(texts)) == 1


def test_a_head_without_end_is_no_answer(fault_server: Served) -> None:
    quick = replace(QUICK, first_token_s=0.2)
    remote = backend(fault_server.url("head-drip"), limits=quick)
    assert "no token came within 0.2 s" in str(failure(remote))


@pytest.mark.parametrize("fault", ["ok", "401-echo", "cut", "500", "error-event", "redirect"])
def test_the_key_and_the_prompt_are_in_no_log_error_or_repr(
    fault: str, fault_server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    remote = backend(fault_server.url(fault))
    written = [repr(remote), repr(remote.options), repr(vars(remote)), str(remote.options)]
    try:
        written.append(repr(list(remote.stream(ASK))))
    except EdgellmError as error:
        written += [str(error), repr(error), repr(vars(error))]
        written += traceback.format_exception(error)
    assert caplog.records, "httpcore logs what it does; this test should see it"
    written += [record.getMessage() for record in caplog.records]
    written += [repr(record.args) for record in caplog.records]
    for text in written:
        assert KEY not in text
        assert PROMPT not in text


def test_an_exchange_gives_lower_case_headers_and_raw_chunks(fault_server: Served) -> None:
    options = RemoteOptions(fault_server.url("json"), "big", limits=QUICK)
    body = b'{"messages": []}'
    with exchange(options, "/chat/completions", body, Watch(QUICK)) as reply:
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert b"".join(reply.chunks).startswith(b'{"choices"')
