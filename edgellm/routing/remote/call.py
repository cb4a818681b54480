"""One call: the only retry loop there is, and the events of the attempt that is answered.

enter breaker ─▶ POST ─▶ status ─▶ first text: Start ─▶ Delta … ─▶ Done
                  │         │           └── breaks from here on: BrokenOff
                  └─────────┴── fails: pause (full jitter, Retry-After) and again, while
                                attempts and the first token's deadline allow; else an error

Nothing is tried again once text was shown: that is the caller's choice, who knows what it paid.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Iterator

from edgellm.errors import ContextFull, EdgellmError
from edgellm.routing.errors import (
    AccessDenied,
    BrokenOff,
    Busy,
    EmptyAnswer,
    NotTried,
    RemoteFailed,
)
from edgellm.routing.remote import report
from edgellm.routing.remote.answer import Answer, Unfit
from edgellm.routing.remote.circuit import Breaker, Connectivity
from edgellm.routing.remote.network import Reply, exchange
from edgellm.routing.remote.options import RemoteOptions
from edgellm.routing.remote.status import TOO_LONG, Passing, judge, plain, quote
from edgellm.routing.remote.watch import UNBILLED, Trouble, Watch
from edgellm.routing.remote.wire import Outgoing
from edgellm.stream import Delta, Done, Event, Request, Start, Usage

# Of what a server says with an error; the message is shown shorter still.
ERROR_BODY_BYTES = 1 << 16


class Call:
    """`events` once. `attempts` and `maybe_billed`, the requests that failed and may have been
    charged, are right at any time."""

    def __init__(
        self,
        options: RemoteOptions,
        request: Request,
        outgoing: Outgoing,
        breaker: Breaker,
        connectivity: Connectivity,
    ) -> None:
        self.options = options
        self.request = request
        self.outgoing = outgoing
        self.breaker = breaker
        self.connectivity = connectivity
        self.watch = Watch(options.limits)
        self.answer = Answer(outgoing.echo)
        self.attempts = 0
        self.maybe_billed = 0
        self._started = False
        self._answered = False

    def events(self) -> Generator[Event, None, None]:
        self._enter()
        try:
            while not (yield from self._attempt()):
                pass
        except Trouble:
            # Closed by another thread, between two attempts; nobody waits for an answer.
            if not self.watch.cancelled:
                raise
        finally:
            # Until an attempt tells otherwise the remote is neither better nor worse than before.
            self.breaker.abandoned()

    def _enter(self) -> None:
        local = self.options.is_loopback
        if not local and not self.connectivity.enter():
            raise self._error(NotTried, "the network is down", self.connectivity.wait_s())
        if not self.breaker.enter():
            why = "it failed too often a moment ago"
            raise self._error(NotTried, why, self.breaker.wait_s())

    def _attempt(self) -> Generator[Event, None, bool]:
        """Whether the call is over; False to go round again."""
        self.attempts += 1
        self.answer = Answer(self.outgoing.echo)
        try:
            yield from self._once()
            return True
        except Trouble as trouble:
            if self.watch.cancelled:
                self.maybe_billed += 1
                return True
            self._learn(trouble)
            if self._started:
                raise self._broken(str(trouble)) from trouble
            self._pause(trouble)
            return False
        except Unfit as unfit:
            self._unfit(unfit, self._reported(unfit))
            return False
        except GeneratorExit:
            self.maybe_billed += not self._answered
            raise

    def _once(self) -> Generator[Event, None, None]:
        with exchange(self.options, self.outgoing.path, self.outgoing.body, self.watch) as reply:
            self._reached(True)
            self._judge(reply)
            try:
                yield from self._deltas(reply)
            except Trouble:
                # Some servers neither say [DONE] nor hang up after the last word.
                if self.answer.finish is None or self.watch.cancelled:
                    raise
        if not self.answer.ended:
            raise Trouble("cut", "the answer ended too early", again=True)
        self.breaker.succeeded()
        if not self._started:
            if not (self.answer.text or self.request.stop or self.outgoing.echo):
                raise self._empty()
            yield self._start(None)
        yield self._done()

    def _deltas(self, reply: Reply) -> Iterator[Event]:
        for delta in self.answer.read(reply.chunks):
            self.watch.alive(ending=self.answer.finish is not None)
            if delta is None:
                continue
            if not self._started:
                yield self._start(delta)
            yield delta
            # The caller may have taken its time; that is no silence of the server.
            self.watch.alive(ending=self.answer.finish is not None)

    def _judge(self, reply: Reply) -> None:
        body = b"" if 200 <= reply.status < 300 else _head(reply.chunks)
        verdict = judge(self.options, reply.status, reply.headers, body)
        if isinstance(verdict, EdgellmError):
            # It answers, so it is well; what is wrong is the request.
            self.breaker.succeeded()
            self.maybe_billed += 200 <= reply.status < 300
            if isinstance(verdict, RemoteFailed):
                verdict.attempts, verdict.maybe_billed = self.attempts, self.maybe_billed
        if verdict is not None:
            raise verdict

    def _start(self, first: Delta | None) -> Start:
        self._started = True
        return report.start(self.options, self.request, self.outgoing, self.answer, first)

    def _done(self) -> Done:
        self._answered = True
        trouble = report.past_trouble(self.attempts, self.maybe_billed)
        return report.done(self.options, self.answer, self._usage(), self.watch, trouble)

    def _usage(self) -> tuple[Usage, str | None]:
        return self.answer.count(self.outgoing.prompt_tokens, self.request.max_tokens)

    @property
    def _who(self) -> str:
        return report.who(self.options)

    def _reached(self, success: bool) -> None:
        if not self.options.is_loopback:
            self.connectivity.connected(success)

    def _learn(self, trouble: Trouble) -> None:
        """What a failed attempt says about the remote, the network and the bill."""
        if trouble.kind == "connect":
            self._reached(False)
        if trouble.kind not in UNBILLED:
            self.maybe_billed += 1
        if trouble.kind != "total":
            self.breaker.failed()

    def _unfit(self, unfit: Unfit, why: str) -> None:
        """Waits to try again, or raises what an answer has come to that is none."""
        self.maybe_billed += 1
        if unfit.refusal:
            self.breaker.succeeded()
        else:
            self.breaker.failed()
        if self._started:
            raise self._broken(why) from unfit
        if unfit.refusal:
            raise self._error(EmptyAnswer, why, None) from unfit
        if unfit.error is not None and TOO_LONG.search(why):
            raise ContextFull(f"the prompt does not fit {self._who}: {why}; shorten it") from unfit
        self._pause(Trouble("cut", why, again=unfit.error is not None))

    def _pause(self, trouble: Trouble) -> None:
        """Waits before the next attempt, or raises what the call has come to."""
        retry = self.options.retry
        asked_s = trouble.retry_after_s if isinstance(trouble, Passing) else None
        spread_s = min(retry.backoff_cap_s, retry.backoff_s * 2 ** (self.attempts - 1))
        # Not a secret: jitter only keeps clients from coming back all at once.
        pause_s = (asked_s or 0.0) + random.uniform(0.0, spread_s)
        more = trouble.again and self.attempts < retry.attempts and self.breaker.state == "closed"
        if more and self.watch.pause(pause_s):
            return
        if asked_s:
            self.breaker.hold(asked_s)
        tries = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        kind: type[RemoteFailed] = RemoteFailed
        if isinstance(trouble, Passing) and trouble.status == 429:
            kind = Busy
        elif trouble.kind == "tls":
            kind = AccessDenied
        raise self._error(kind, f"{trouble}{tries}", asked_s) from trouble

    def _error(
        self, kind: type[RemoteFailed], why: str, retry_after_s: float | None
    ) -> RemoteFailed:
        wait = f"try again in {retry_after_s:.0f} s" if retry_after_s else "try again later"
        error = kind(f"{self._who} gives no answer: {why}; {wait}, or use the local model")
        error.retry_after_s = retry_after_s
        error.attempts, error.maybe_billed = self.attempts, self.maybe_billed
        return error

    def _empty(self) -> RemoteFailed:
        why = "it finished without a word"
        error = self._error(EmptyAnswer, f"{why} ({self.answer.finish})", None)
        error.usage, _ = self._usage()
        return error

    def _broken(self, why: str) -> BrokenOff:
        text = self.answer.text
        error = BrokenOff(f"{self._who} broke off after {len(text)} characters: {why}; ask again")
        error.text = text
        error.usage, _ = self._usage()
        error.attempts, error.maybe_billed = self.attempts, self.maybe_billed
        return error

    def _reported(self, unfit: Unfit) -> str:
        if isinstance(unfit.error, str):
            return f"{unfit}: {plain(self.options, unfit.error)}"
        if isinstance(unfit.error, dict):
            return f"{unfit}{quote(self.options, json.dumps({'error': unfit.error}).encode())}"
        return str(unfit)


def _head(chunks: Iterator[bytes]) -> bytes:
    """The beginning of an error's body."""
    body = b""
    try:
        for chunk in chunks:
            body += chunk
            if len(body) >= ERROR_BODY_BYTES:
                break
    except Trouble:
        # The status is what counts; a cut body is no second misfortune.
        pass
    return body[:ERROR_BODY_BYTES]
