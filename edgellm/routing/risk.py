"""A risk instead of a threshold: the most permissive one that a pack's certificate covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from edgellm.errors import UsageError
from edgellm.routing.options import RouterOptions
from edgellm.routing.seams import Confidence


class Certificate(Protocol):
    @property
    def threshold(self) -> float | None: ...

    def line(self) -> str: ...


@runtime_checkable
class Certifying(Protocol):
    """A confidence pack that holds graded answers to certify with."""

    def certify(self, risk: float, confidence: float) -> Certificate: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """Answers with P(correct) of at least `threshold` stay; `line` says what vouches for it."""

    threshold: float
    line: str | None = None


def kept(options: RouterOptions, confidence: Confidence | None) -> Kept:
    """The threshold asked for or certified; above 1, so that nothing stays, if none can be.

    UsageError when a risk is asked for and there is no pack with graded answers.
    """
    if options.risk is None:
        return Kept(options.threshold)
    if not isinstance(confidence, Certifying):
        raise UsageError(
            "a risk needs a confidence pack for this model; make one with edgellm route calibrate"
        )
    found = confidence.certify(options.risk, options.certainty)
    threshold = math.inf if found.threshold is None else found.threshold
    return Kept(threshold, found.line())
