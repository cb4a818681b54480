"""When a remote is left alone. Time is a number here."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import pytest
from launch import Served

from edgellm.routing.errors import Busy, NotTried, RemoteFailed
from edgellm.routing.remote.backend import RemoteBackend
from edgellm.routing.remote.circuit import Breaker, Connectivity
from edgellm.routing.remote.options import RemoteOptions, Retry
from edgellm.stream import Request, complete

ASK = Request.user("Hello")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_breaker_opens_after_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(failures=3)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert (breaker.state, breaker.enter(), breaker.wait_s()) == ("closed", True, 0.0)
    breaker.failed()
    assert (breaker.state, breaker.enter()) == ("open", False)
    assert breaker.wait_s() > 0


def test_a_half_open_breaker_lets_one_request_through() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, open_s=30, clock=clock)
    breaker.failed()
    clock.now += 29.9
    assert not breaker.enter()
    clock.now += 0.1
    assert breaker.state == "half-open"
    assert breaker.enter()
    assert not breaker.enter()
    assert breaker.wait_s() > 0
    breaker.failed()
    assert breaker.state == "open"
    clock.now += 30
    assert breaker.enter()
    breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.enter()
    assert breaker.enter()


def test_a_trial_that_was_closed_leaves_room_for_another() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, open_s=30, clock=clock)
    breaker.failed()
    clock.now += 30
    assert breaker.enter()
    breaker.abandoned()
    assert breaker.enter()


def test_a_breaker_holds_as_long_as_the_server_asks() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    breaker.hold(60)
    assert breaker.wait_s() == 60
    clock.now += 59
    assert not breaker.enter()
    clock.now += 1
    assert breaker.enter()


def test_offline_needs_failures_in_a_row_and_online_successes_in_a_row() -> None:
    clock = Clock()
    network = Connectivity(down_after=3, up_after=2, trial_s=5, clock=clock)
    for success in (False, False, True, False, False):
        network.connected(success)
    assert network.online
    network.connected(False)
    assert not network.online
    assert network.wait_s() == 5
    assert not network.enter()
    clock.now += 5
    assert network.enter()
    assert not network.enter()
    # A flicker: one success, then a failure.
    network.connected(True)
    network.connected(False)
    assert not network.online
    network.connected(True)
    network.connected(True)
    assert network.online
    assert network.enter()
    assert network.enter()


def remote(url: str, **parts: object) -> RemoteBackend:
    options = RemoteOptions(url, "big", retry=Retry(3, 0.0, 0.0))
    return RemoteBackend(options, **parts)  # type: ignore[arg-type]


def test_an_open_breaker_sends_nothing_and_says_for_how_long(fault_server: Served) -> None:
    backend = remote(fault_server.url("500~breaker"), breaker=Breaker(failures=5))
    for _ in range(2):
        with pytest.raises(RemoteFailed, match="HTTP 500"):
            next(backend.stream(ASK))
    # The second call stops at the fifth failure, whatever attempts it had left.
    assert fault_server.state()["500~breaker"]["requests"] == 5
    with pytest.raises(
        NotTried, match="failed too often a moment ago; try again in 30 s"
    ) as caught:
        next(backend.stream(ASK))
    assert (caught.value.attempts, caught.value.maybe_billed) == (0, 0)
    assert fault_server.state()["500~breaker"]["requests"] == 5
    assert backend.wait_s() > 0


def test_a_half_open_breaker_makes_one_attempt_and_closes_when_it_is_answered(
    fault_server: Served,
) -> None:
    clock = Clock()
    breaker = Breaker(failures=2, open_s=30, clock=clock)
    backend = remote(fault_server.url("500-twice~half"), breaker=breaker)
    with pytest.raises(RemoteFailed):
        next(backend.stream(ASK))
    assert breaker.state == "open"
    clock.now += 30
    assert complete(backend.stream(ASK)).text.startswith("one")
    assert breaker.state == "closed"


def test_a_refusal_of_the_request_is_no_failure_of_the_remote(fault_server: Served) -> None:
    breaker = Breaker(failures=1)
    for fault in ("400-parameter", "404-model", "401", "413"):
        with pytest.raises(Exception, match="HTTP"):
            next(remote(fault_server.url(fault), breaker=breaker).stream(ASK))
    assert breaker.state == "closed"


def test_a_closed_answer_is_no_failure_of_the_remote(fault_server: Served) -> None:
    breaker = Breaker(failures=1)
    events = remote(fault_server.url("slow"), breaker=breaker).stream(ASK)
    next(events)
    events.close()
    assert breaker.state == "closed"


def test_retry_after_beyond_the_patience_holds_the_breaker(fault_server: Served) -> None:
    backend = remote(fault_server.url("429-60s"))
    with pytest.raises(Busy) as caught:
        next(backend.stream(ASK))
    assert caught.value.retry_after_s == 60
    assert 50 < backend.wait_s() <= 60
    with pytest.raises(NotTried):
        next(backend.stream(ASK))


def test_a_dead_network_is_noticed_once_for_all_remotes(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    network = Connectivity(down_after=2)
    remotes = [remote(f"https://{name}.invalid/v1", connectivity=network) for name in "abc"]
    for backend in remotes[:2]:
        with pytest.raises(RemoteFailed, match="is not known here"):
            next(backend.stream(ASK))
    with pytest.raises(NotTried, match="the network is down; try again in"):
        next(remotes[2].stream(ASK))
    assert all(backend.wait_s() > 0 for backend in remotes)


def test_a_server_on_this_machine_needs_no_network(fault_server: Served) -> None:
    network = Connectivity(down_after=1)
    network.connected(False)
    backend = remote(fault_server.url("ok"), connectivity=network)
    assert backend.wait_s() == 0
    assert complete(backend.stream(ASK)).text.startswith("one")
    assert not network.online
