"""Every fault is answered or refused with the right error, after the right number of attempts."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
from launch import Served

from edgellm.errors import ContextFull, EdgellmError, NotFound, Refused, UsageError
from edgellm.routing.errors import AccessDenied, BrokenOff, Busy, EmptyAnswer, RemoteFailed
from edgellm.routing.remote.backend import RemoteBackend
from edgellm.routing.remote.options import Limits, RemoteOptions, Retry
from edgellm.stream import Completion, Delta, Done, Request, Sampling, Start, Usage, complete

KEY = "sk-test-0123456789abcdef"
ANSWER = "one two three four five six seven eight nine ten"
BEGINNING = "one two three"
# One limit is short at a time, so that a busy machine cannot make another one end the call.
PATIENT = Limits(connect_s=20, first_token_s=20, idle_s=20, total_s=40)
FIRST = replace(PATIENT, first_token_s=0.3)
IDLE = replace(PATIENT, idle_s=0.4)
TOTAL = replace(PATIENT, total_s=1.0)
ASK = Request.user("What do you say?")


class Remotes:
    """Makes remotes that have a fault, and knows what came to the server in this test alone."""

    number = itertools.count()

    def __init__(self, server: Served) -> None:
        self.server = server
        self.suffix = f"~{next(self.number)}"

    def __call__(self, fault: str, limits: Limits = PATIENT, **changes: Any) -> RemoteBackend:
        url = self.server.url(fault + self.suffix)
        options = RemoteOptions(url, "big", KEY, limits=limits, retry=Retry(3, 0.01, 0.02))
        return RemoteBackend(replace(options, **changes))

    def seen(self, fault: str) -> dict[str, Any]:
        return dict(self.server.state()[fault + self.suffix])

    def all_closed(self, fault: str) -> dict[str, Any]:
        """What came for a fault, once none of its connections is open any more."""
        return self.server.wait_for(fault + self.suffix, "open", 0)


@pytest.fixture
def remote(fault_server: Served) -> Remotes:
    return Remotes(fault_server)


def ask(backend: RemoteBackend, request: Request = ASK, prefix: str = "") -> Completion:
    return complete(backend.stream(request, prefix))


@dataclass(frozen=True)
class Row:
    fault: str
    error: type[EdgellmError]
    says: str
    attempts: int = 1
    maybe_billed: int = 0
    limits: Limits = PATIENT


REFUSED = [
    Row("400-context", ContextFull, "does not fit big at 127.0.0.1: maximum context length is"),
    Row("400-parameter", Refused, "HTTP 400: unknown parameter: stream_options"),
    Row("401", AccessDenied, "HTTP 401: bad key; check EDGELLM_REMOTE_KEY"),
    Row("402", AccessDenied, "HTTP 402"),
    Row("404-model", NotFound, "big at 127.0.0.1 is not there: HTTP 404: no such model"),
    Row("413", ContextFull, "too large"),
    Row("429", Busy, "HTTP 429 .3 attempts.", 3),
    Row("429-60s", Busy, "HTTP 429; try again in 60 s"),
    Row("429-quota", AccessDenied, "used up: no money"),
    Row("500", RemoteFailed, "HTTP 500 .3 attempts.", 3),
    Row("empty", EmptyAnswer, "finished without a word"),
    Row("nothing", RemoteFailed, "ended too early .3 attempts.", 3, 3),
    Row("silent", RemoteFailed, "no token came within 0.3 s", 1, 1, FIRST),
    Row("silent-after-head", RemoteFailed, "no token came within 0.3 s", 1, 1, FIRST),
    Row("head-drip", RemoteFailed, "no token came within 0.3 s", 1, 1, FIRST),
    Row("pings", RemoteFailed, "no token came within 0.3 s", 1, 1, FIRST),
    Row("cut-before-text", RemoteFailed, "the connection ended too early", 3, 3),
    Row("only-malformed", RemoteFailed, "101 malformed lines", 1, 1),
    Row("web-page", RemoteFailed, "answers with a web page", 1, 1),
    Row("broken-json", RemoteFailed, "broken JSON", 1, 1),
    Row("gzip-bomb", RemoteFailed, "answers compressed", 1, 1),
    Row("redirect", RemoteFailed, "sends us on to another address, which is not followed"),
    Row("redirect-here", RemoteFailed, "not followed"),
    Row("finish-filter", EmptyAnswer, "content filter", 1, 1),
    Row("error-event", RemoteFailed, "reports an error: overloaded .3 attempts.", 3, 3),
    Row("error-event-context", ContextFull, "prompt is too long: 9000 tokens"),
    Row("tools", EmptyAnswer, "calls a tool", 1, 1),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.fault)
def test_a_fault_before_the_answer_is_the_right_error(row: Row, remote: Remotes) -> None:
    backend = remote(row.fault, row.limits)
    events = backend.stream(ASK)
    with pytest.raises(row.error, match=row.says) as caught:
        next(events)
    assert events.attempts == row.attempts
    assert "\n" not in str(caught.value)
    if isinstance(caught.value, RemoteFailed):
        assert (caught.value.attempts, caught.value.maybe_billed) == (
            row.attempts,
            row.maybe_billed,
        )
    assert remote.all_closed(row.fault)["requests"] == row.attempts


BROKEN = [
    Row("stall", BrokenOff, "after 13 characters: nothing came for 0.4 s", limits=IDLE),
    Row("drip", BrokenOff, "after 13 characters: nothing came for 0.4 s", limits=IDLE),
    Row("cut", BrokenOff, "the connection ended too early"),
    Row("reset", BrokenOff, "the connection broke"),
    Row("ends-without-reason", BrokenOff, "the answer ended too early"),
    Row("huge-line", BrokenOff, "a line without end"),
    Row("finish-filter-late", BrokenOff, "content filter"),
    Row("error-event-late", BrokenOff, "reports an error: overloaded"),
]


@pytest.mark.parametrize("row", BROKEN, ids=lambda row: row.fault)
def test_an_answer_that_breaks_says_what_had_come_and_is_not_asked_again(
    row: Row, remote: Remotes
) -> None:
    shown = []
    events = remote(row.fault, row.limits).stream(ASK)
    with pytest.raises(BrokenOff, match=row.says) as caught:
        shown.extend(events)
    assert isinstance(shown[0], Start)
    assert "".join(e.text for e in shown if isinstance(e, Delta)) == BEGINNING
    assert caught.value.text == BEGINNING
    assert caught.value.usage.completion_tokens >= 3
    assert (caught.value.attempts, caught.value.maybe_billed) == (1, 1)
    remote.all_closed(row.fault)


def test_an_answer_that_takes_too_long_in_all_is_broken_off(remote: Remotes) -> None:
    with pytest.raises(BrokenOff, match="not whole within 1 s"):
        list(remote("slow", TOTAL).stream(ASK))


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        ("500-twice", 3),
        ("503-once", 2),
        ("429-1s", 2),
        ("429-date", 2),
        ("cut-once", 2),
        ("error-event-once", 2),
    ],
)
def test_a_passing_fault_is_answered_by_another_attempt(
    fault: str, attempts: int, remote: Remotes
) -> None:
    started = time.monotonic()
    events = remote(fault).stream(ASK)
    answer = complete(events)
    assert answer.text == ANSWER
    assert events.attempts == attempts
    assert f"answered at attempt {attempts}" in answer.route.reason
    if fault in ("429-1s", "429-date"):
        # Not earlier than it asked for; a date has whole seconds, so only the number is exact.
        assert time.monotonic() - started >= (1.0 if fault == "429-1s" else 0.0)


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("ok", "asked big at 127.0.0.1"),
        ("no-done", "asked big"),
        ("malformed", "2 malformed lines skipped"),
        ("spread", "asked big"),
        ("json", "asked big"),
        ("cookies", "asked big"),
        ("finish-unknown", "asked big"),
        ("reasoning", "its reasoning is not shown"),
        ("usage-none", "estimated: the server reports none"),
        ("usage-negative", "estimated: the server's are impossible"),
        ("usage-text", "estimated: the server's are impossible"),
        ("usage-zero", "estimated: the server's are impossible"),
        ("usage-more-than-allowed", "estimated: the server's exceed the 512 allowed"),
    ],
)
def test_what_can_be_read_is_answered_and_the_oddity_is_told(
    fault: str, note: str, remote: Remotes
) -> None:
    answer = ask(remote(fault, IDLE))
    assert answer.text == ANSWER
    assert answer.finish_reason == "stop"
    assert note in answer.route.reason
    assert answer.route.source == "remote"
    if "estimated" in note:
        assert answer.usage.completion_tokens >= 10
        assert answer.usage.prompt_tokens >= 8
    elif fault not in ("no-done", "reasoning"):
        assert answer.usage == Usage(11, 10)
    remote.all_closed(fault)


def test_a_json_answer_to_a_streaming_request_is_taken_with_a_notice(remote: Remotes) -> None:
    start = next(remote("json").stream(ASK))
    assert isinstance(start, Start)
    assert start.notices == ("big at 127.0.0.1 does not stream: the answer comes in one piece",)


def test_length_is_told_as_length(remote: Remotes) -> None:
    assert ask(remote("finish-length")).finish_reason == "length"


def test_a_character_in_two_halves_becomes_whole(remote: Remotes) -> None:
    pieces = [e.text for e in remote("halves").stream(ASK) if isinstance(e, Delta)]
    assert pieces == ["a", "😀b"]


def test_no_cookie_is_sent_back_and_no_redirect_carries_the_key(remote: Remotes) -> None:
    backend = remote("cookies")
    ask(backend)
    ask(backend)
    last = remote.seen("cookies")["headers"][-1]
    assert "cookie" not in last
    assert set(last) == {
        "host", "user-agent", "content-type", "accept", "accept-encoding", "connection",
        "authorization", "content-length",
    }  # fmt: skip
    assert last["user-agent"].startswith("edgellm/")
    assert last["user-agent"].count(" ") == 0


def test_an_empty_answer_is_right_where_it_may_end_at_once(remote: Remotes) -> None:
    assert ask(remote("empty"), replace(ASK, stop=("one",))).text == ""


def test_an_empty_answer_tells_what_it_cost(remote: Remotes) -> None:
    with pytest.raises(EmptyAnswer) as caught:
        ask(remote("empty"))
    assert caught.value.usage == Usage(11, 1)


def test_going_on_from_a_prefix_needs_the_capability(remote: Remotes) -> None:
    with pytest.raises(Refused, match="name the capability prefill"):
        remote("ok").stream(ASK, "Once upon")


def test_an_echo_of_the_prefix_is_left_out(remote: Remotes) -> None:
    can = frozenset({"prefill"})
    assert ask(remote("echo", capabilities=can), prefix="Once upon a time ").text == ANSWER
    assert ask(remote("ok", capabilities=can), prefix="one of").text == ANSWER
    assert ask(remote("ok", capabilities=can), prefix="On").text == ANSWER


def test_closing_the_iterator_closes_the_socket_at_once(remote: Remotes) -> None:
    events = remote("slow").stream(ASK)
    assert isinstance(next(events), Start)
    assert remote.seen("slow")["open"] == 1
    events.close()
    remote.all_closed("slow")
    assert list(events) == []
    assert events.maybe_billed == 1


def test_dropping_the_iterator_closes_the_socket(remote: Remotes) -> None:
    next(remote("slow").stream(ASK))
    remote.all_closed("slow")


def test_a_slow_consumer_is_no_silence_of_the_server(remote: Remotes) -> None:
    text = ""
    for event in remote("ok", IDLE).stream(ASK):
        if isinstance(event, Delta):
            text += event.text
            time.sleep(0.5 if len(text) < 8 else 0)
        if isinstance(event, Done):
            assert event.finish_reason == "stop"
    assert text == ANSWER


def test_nothing_is_sent_before_the_first_event_is_pulled(remote: Remotes) -> None:
    before = remote.server.state()["*"]
    events = remote("ok").stream(ASK)
    remote("ok").outgoing(ASK)
    assert remote.server.state()["*"] == before
    events.close()
    assert list(events) == []
    assert remote.server.state()["*"] == before


def test_what_is_sent_is_what_was_shown_before(remote: Remotes) -> None:
    backend = remote("ok")
    request = Request.user("Grüße, 世界 \ud83d", "Be kind")
    ask(backend, request)
    sent = remote.seen("ok")["bodies"][-1]
    assert sent.encode() == backend.outgoing(request).body


def test_a_seed_that_does_not_fit_is_wrong_usage(remote: Remotes) -> None:
    with pytest.raises(UsageError, match="below 2"):
        remote("ok").stream(replace(ASK, sampling=Sampling(seed=2**63)))


def test_pauses_are_drawn_from_the_whole_range_and_never_outlast_the_deadline(
    remote: Remotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full jitter: from zero to a limit that doubles up to its cap."""
    ranges = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return 0.0

    monkeypatch.setattr(random, "uniform", draw)
    with pytest.raises(RemoteFailed):
        next(remote("500", retry=Retry(5, 1.0, 3.0)).stream(ASK))
    assert ranges[:3] == [(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)]
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    with pytest.raises(RemoteFailed) as caught:
        next(remote("500", retry=Retry(5, 60.0, 60.0)).stream(ASK))
    assert caught.value.attempts == 1
