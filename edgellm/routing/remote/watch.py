"""The limits of one call, enforced on every single read, and the switch that ends it at once.

A time limit of an HTTP library bounds the silence between two bytes, so a server that drips never
meets it. Here each wait is as long as the nearest of all deadlines allows, and not longer.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Literal

from edgellm.routing.remote.options import Limits

Kind = Literal[
    "connect",  # no way to the other machine
    "refused",  # it is there, and nobody listens
    "tls",
    "first-token",
    "idle",
    "total",
    "cut",
    "status",
    "cancelled",
]
# Until then a vendor has nothing to charge for.
UNBILLED = frozenset({"connect", "refused", "tls", "status"})


# Token counts are sent together with the finish reason or right after it.
ENDING_S = 1.0


class Trouble(Exception):
    """A request that came to nothing, or an answer that broke; the text says why in one clause.

    `again` means that the same request may well succeed a moment later.
    """

    def __init__(self, kind: Kind, why: str, again: bool = False) -> None:
        super().__init__(why)
        self.kind = kind
        self.again = again


class Watch:
    """Counts from its making. `streaming` and `alive` are told by whoever reads the answer."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.started = time.monotonic()
        self.first_token: float | None = None
        self._connecting: float | None = None
        self._last_life = self.started
        self._idle_s = limits.idle_s
        self._socket: socket.socket | None = None
        self._cancelled = threading.Event()

    def connecting(self, sock: socket.socket | None = None) -> None:
        """A connection begins to be made, or (with its socket) goes on being made."""
        if sock is None:
            self._connecting = time.monotonic()
        self._socket = sock
        self._check_cancelled()

    def connected(self) -> None:
        self._connecting = None

    def alive(self, ending: bool = False) -> None:
        """A piece of the answer came, or its reader came back for more; the first one ends the
        wait for the first token. `ending`: all is said, and only token counts may follow."""
        self._idle_s = min(self.limits.idle_s, ENDING_S) if ending else self.limits.idle_s
        self._last_life = time.monotonic()
        if self.first_token is None:
            self.first_token = self._last_life

    def wait_s(self) -> float:
        """Seconds that may pass from now; Trouble when there are none left."""
        self._check_cancelled()
        left = self._nearest()[0] - time.monotonic()
        if left <= 0:
            raise self.expired()
        return left

    def expired(self) -> Trouble:
        """The limit that is nearest, as the reason why a wait has ended."""
        self._check_cancelled()
        _, kind, seconds, what = self._nearest()
        return Trouble(kind, f"{what} {seconds:g} s")

    def pause(self, seconds: float) -> bool:
        """Waits between two attempts; False, at once, when the next would come too late."""
        if seconds >= self._nearest()[0] - time.monotonic():
            return False
        self._cancelled.wait(seconds)
        self._check_cancelled()
        return True

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """From any thread: the call ends, also when it waits for bytes at this moment."""
        self._cancelled.set()
        sock = self._socket
        if sock is not None:
            # Not SSLSocket.shutdown, which takes the TLS state away under the reader's feet.
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Trouble("cancelled", "the answer was closed")

    def _nearest(self) -> tuple[float, Kind, float, str]:
        """(moment, kind, length in seconds, words) of the deadline that comes first."""
        limits = self.limits
        total, first = limits.total_s, limits.first_token_s
        due: list[tuple[float, Kind, float, str]] = [
            (self.started + total, "total", total, "the answer was not whole within"),
        ]
        if self.first_token is None:
            due.append((self.started + first, "first-token", first, "no token came within"))
        else:
            due.append((self._last_life + self._idle_s, "idle", self._idle_s, "nothing came for"))
        if self._connecting is not None:
            seconds = limits.connect_s
            due.append((self._connecting + seconds, "connect", seconds, "no connection within"))
        return min(due)
