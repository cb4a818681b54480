"""Remote models over HTTP: any server that speaks OpenAI's chat completions.

options ── RemoteBackend ── stream ──▶ Call: breaker, attempts, limits ──▶ events
                                        │
    wire      Request ⇄ JSON            ├─ network   one POST to one host, deadlines on every read
    status    what a status means       ├─ sse       lines → JSON objects
    circuit   when not to ask           ├─ answer    objects → text, finish reason, usage
                                        └─ report    the first and the last event

keys · prices   files of the user                   watch      the limits of one call
configure       the remote of the user's settings
"""

from edgellm.routing.errors import (
    AccessDenied,
    BrokenOff,
    Busy,
    EmptyAnswer,
    NotTried,
    RemoteFailed,
)
from edgellm.routing.remote.backend import RemoteBackend, RemoteStream
from edgellm.routing.remote.circuit import Breaker, Connectivity
from edgellm.routing.remote.configure import from_settings
from edgellm.routing.remote.options import Limits, Price, RemoteOptions, Retry, Secret
from edgellm.routing.remote.wire import Outgoing

__all__ = [
    "AccessDenied",
    "Breaker",
    "BrokenOff",
    "Busy",
    "Connectivity",
    "EmptyAnswer",
    "Limits",
    "NotTried",
    "Outgoing",
    "Price",
    "RemoteBackend",
    "RemoteFailed",
    "RemoteOptions",
    "RemoteStream",
    "Retry",
    "Secret",
    "from_settings",
]
