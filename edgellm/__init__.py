"""edgellm: small language models on the machine in front of you.

    import edgellm
    with edgellm.load("smollm2-135m") as model:
        for event in model.stream(edgellm.Request.user("Hello")): ...

Importing does nothing: each name is looked up in its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.errors import EdgellmError
    from edgellm.routing.confidence.library import confidence_pack
    from edgellm.routing.options import RouterOptions
    from edgellm.routing.privacy.guard import Guard
    from edgellm.routing.privacy.options import PrivacyOptions
    from edgellm.routing.remote.options import RemoteOptions as Remote
    from edgellm.routing.router import Router
    from edgellm.runtime.local import load
    from edgellm.runtime.options import LoadOptions
    from edgellm.stream import (
        Backend,
        Completion,
        Delta,
        Done,
        Event,
        Message,
        Request,
        Sampling,
        Start,
        complete,
    )

    __version__: str

# A module, with the attribute where it has another name there.
_MODULES = {
    "EdgellmError": "edgellm.errors",
    "Guard": "edgellm.routing.privacy.guard",
    "PrivacyOptions": "edgellm.routing.privacy.options",
    "LoadOptions": "edgellm.runtime.options",
    "Remote": "edgellm.routing.remote.options:RemoteOptions",
    "Router": "edgellm.routing.router",
    "RouterOptions": "edgellm.routing.options",
    "confidence_pack": "edgellm.routing.confidence.library",
    "load": "edgellm.runtime.local",
    "Backend": "edgellm.stream",
    "Completion": "edgellm.stream",
    "Delta": "edgellm.stream",
    "Done": "edgellm.stream",
    "Event": "edgellm.stream",
    "Message": "edgellm.stream",
    "Request": "edgellm.stream",
    "Sampling": "edgellm.stream",
    "Start": "edgellm.stream",
    "complete": "edgellm.stream",
}

__all__ = [
    "Backend",
    "Completion",
    "Delta",
    "Done",
    "EdgellmError",
    "Event",
    "Guard",
    "LoadOptions",
    "Message",
    "PrivacyOptions",
    "Remote",
    "Request",
    "Router",
    "RouterOptions",
    "Sampling",
    "Start",
    "__version__",
    "complete",
    "confidence_pack",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from edgellm.version import version

        return version()
    if name not in _MODULES:
        raise AttributeError(f"module 'edgellm' has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
