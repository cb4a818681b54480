"""What a failed self-check is."""

from __future__ import annotations

from edgellm.errors import EdgellmError


class SelfCheckFailed(EdgellmError):
    """The bundle does not compute what the checkpoint means; it was not published."""


def within(what: str, error: float, limit: float) -> float:
    """`error`; SelfCheckFailed when it is above `limit`, or no number."""
    if not error <= limit:  # also NaN
        raise SelfCheckFailed(
            f"the bundle failed its self-check: {what} differ by {error:.3g}, allowed is "
            f"{limit:g}; nothing was published; report this with the checkpoint's name"
        )
    return float(error)
