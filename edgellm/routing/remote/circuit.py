"""When not to ask: a breaker for each remote, and one view of the network for all of them.

closed ── failures in a row ──▶ open ── after a while ──▶ half-open ── one answer ──▶ closed
                                 ▲                          └── one failure ──┐
                                 └────────────────────────────────────────────┘
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]

# LiteLLM and cascadeflow open after 3 and 5; with three attempts a call, 5 is the second call.
FAILURES = 5
OPEN_S = 30.0


class Breaker:
    """Thread-safe. Failures are those of the remote or the way to it, not refusals of a request."""

    def __init__(
        self,
        failures: int = FAILURES,
        open_s: float = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until: float | None = None
        self._trying = False

    @property
    def state(self) -> State:
        with self._lock:
            return self._state()

    def wait_s(self) -> float:
        """Seconds until the next request may be tried; 0 when one may be now."""
        with self._lock:
            if self._open_until is None:
                return 0.0
            left = max(self._open_until - self._clock(), 0.0)
            # While one request tries the remote, others wait for what becomes of it.
            return left or (1.0 if self._trying else 0.0)

    def enter(self) -> bool:
        """Whether a request may go now. After a half-open yes, tell what became of it."""
        with self._lock:
            match self._state():
                case "closed":
                    return True
                case "open":
                    return False
            if self._trying:
                return False
            self._trying = True
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._failures, self._open_until, self._trying = 0, None, False

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._trying or self._failures >= self._limit:
                self._open_until = self._clock() + self._open_s
            self._trying = False

    def abandoned(self) -> None:
        """A request was closed by its user: it says nothing about the remote."""
        with self._lock:
            self._trying = False

    def hold(self, seconds: float) -> None:
        """The remote asks to be left alone (Retry-After)."""
        with self._lock:
            self._trying = False
            self._open_until = max(self._open_until or 0.0, self._clock() + seconds)

    def _state(self) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"


class Connectivity:
    """Whether other machines can be reached at all, slow to change its mind in both directions.

    `down_after` failed connections in a row mean offline. Then one request is let through every
    `trial_s`; only `up_after` successes in a row mean online again, so that a flickering network
    does not throw answers to and fro.
    """

    def __init__(
        self,
        down_after: int = 3,
        up_after: int = 2,
        trial_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._down_after = down_after
        self._up_after = up_after
        self._trial_s = trial_s
        self._clock = clock
        self._lock = threading.Lock()
        self._online = True
        self._against = 0
        self._next_trial = 0.0

    @property
    def online(self) -> bool:
        return self._online

    def wait_s(self) -> float:
        """Seconds until a request may be tried; 0 when one may be now."""
        with self._lock:
            return 0.0 if self._online else max(self._next_trial - self._clock(), 0.0)

    def enter(self) -> bool:
        """Whether a request may go now; while offline, one in every `trial_s`."""
        with self._lock:
            if self._online:
                return True
            now = self._clock()
            if now < self._next_trial:
                return False
            self._next_trial = now + self._trial_s
            return True

    def connected(self, success: bool) -> None:
        """What became of an attempt to reach another machine, whichever it was."""
        with self._lock:
            if success == self._online:
                self._against = 0
                return
            self._against += 1
            if self._against >= (self._down_after if self._online else self._up_after):
                self._online = not self._online
                self._against = 0
                self._next_trial = self._clock() + self._trial_s
