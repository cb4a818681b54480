"""What can go wrong with a remote beyond the common tree, and what a budget has to know of it.

Unreachable            edgellm.errors
└── RemoteFailed       no answer; says how many requests may have been billed all the same
    ├── AccessDenied   the key, the account or the certificate is not accepted
    ├── Busy           429, or too little time left to try again
    ├── EmptyAnswer    finished without a word
    └── NotTried       nothing was sent: the breaker is open or the network is down
BrokenOff              the answer ended early after it had begun
"""

from __future__ import annotations

from edgellm.errors import EdgellmError, Unreachable
from edgellm.stream import Usage


class RemoteFailed(Unreachable):
    """`attempts` requests were made; `maybe_billed` of them reached a server that may charge."""

    attempts = 0
    maybe_billed = 0
    retry_after_s: float | None = None
    usage: Usage | None = None


class AccessDenied(RemoteFailed):
    pass


class Busy(RemoteFailed):
    pass


class EmptyAnswer(RemoteFailed):
    """`usage` is what the server reports for it: it is billed."""


class NotTried(RemoteFailed):
    pass


class BrokenOff(EdgellmError):
    """`text` is all that came after the prefix; `usage` counts it, and is an estimate."""

    text = ""
    usage = Usage(0, 0)
    attempts = 0
    maybe_billed = 0
