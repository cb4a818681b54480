"""The guard that looks at nothing, for those who switch privacy checks off.

It is here, and not a default of Router, so that a router without checks is somebody's decision.
"""

from __future__ import annotations

from edgellm.errors import UsageError
from edgellm.routing.seams import Remote, RemoteEvents, Verdict
from edgellm.stream import Request


class OpenDoor:
    """A Guard that lets every request pass as it is."""

    def judge(self, request: Request) -> Verdict:
        return Verdict()

    def stream(self, remote: Remote, request: Request, prefix: str = "") -> RemoteEvents:
        """The remote's answer. UsageError when `remote` is not one that speaks HTTP."""
        from edgellm.routing.remote import RemoteBackend

        if not isinstance(remote, RemoteBackend):
            raise UsageError(f"{remote.options.model} is no remote that can be asked")
        return remote.stream(request, prefix)
