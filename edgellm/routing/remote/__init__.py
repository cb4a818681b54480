"""Remote models over HTTP: any server that speaks OpenAI's chat completions.

options ── RemoteBackend ── stream ──▶ Call: breaker, attempts, limits ──▶ events
                                        │
    wire      Request ⇄ JSON            ├─ network   one POST to one host, deadlines on every read
    status    what a status means       ├─ sse       lines → JSON objects
    circuit   when not to ask           ├─ answer    objects → text, finish reason, usage
                                        └─ report    the first and the last event

remotes   several of them, ranked for a request     configure  the one of the user's settings
keys · prices   files of the user                   watch      the limits of one call
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
from edgellm.routing.remote.remotes import Need, Ranking, Remotes
from edgellm.routing.remote.wire import Outgoing

__all__ = [
    "AccessDenied",
    "Breaker",
    "BrokenOff",
    "Busy",
    "Connectivity",
    "EmptyAnswer",
    "Limits",
    "Need",
    "NotTried",
    "Outgoing",
    "Price",
    "Ranking",
    "RemoteBackend",
    "RemoteFailed",
    "RemoteOptions",
    "RemoteStream",
    "Remotes",
    "Retry",
    "Secret",
    "from_settings",
]
