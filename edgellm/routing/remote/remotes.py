"""Several remotes, and which of them to ask for a request, in which order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from edgellm.errors import UsageError
from edgellm.routing.remote.backend import RemoteBackend
from edgellm.routing.remote.circuit import Connectivity
from edgellm.routing.remote.options import CAPABILITIES, RemoteOptions
from edgellm.routing.tokens import prompt_estimate
from edgellm.stream import Request, Usage


@dataclass(frozen=True, slots=True)
class Need:
    """What a request asks of a remote; token counts are estimates on the high side."""

    prompt_tokens: int
    max_tokens: int
    capabilities: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := sorted(self.capabilities - CAPABILITIES):
            raise UsageError(f"unknown capability {unknown[0]!r}")

    @staticmethod
    def of(request: Request, prefix: str = "", also: Iterable[str] = ()) -> Need:
        """The need of a request that goes on from `prefix`; `also` names tools or json."""
        needed = set(also)
        if prefix and request.prompt is None:
            needed.add("prefill")
        tokens = prompt_estimate(request, prefix)
        return Need(tokens, request.max_tokens, frozenset(needed))


@dataclass(frozen=True, slots=True)
class Ranking:
    """`candidates` in the order to ask them; `reasons` says of each other one why not."""

    candidates: tuple[RemoteBackend, ...]
    reasons: tuple[str, ...]


class Remotes:
    """The remotes a user has named. They share one view of the network."""

    def __init__(
        self, options: Iterable[RemoteOptions], connectivity: Connectivity | None = None
    ) -> None:
        self.connectivity = connectivity or Connectivity()
        self.all = tuple(RemoteBackend(one, None, self.connectivity) for one in options)

    def rank(self, need: Need) -> Ranking:
        """Who can do it now: lower tiers first, then the cheaper, unknown prices last."""
        reasons = {backend: why_not(backend, need) for backend in self.all}
        able = [backend for backend, reason in reasons.items() if reason is None]
        able.sort(key=lambda backend: (backend.options.tier, expected_usd(backend.options, need)))
        return Ranking(tuple(able), tuple(reason for reason in reasons.values() if reason))


def expected_usd(options: RemoteOptions, need: Need) -> float:
    """The most that the request costs there by these estimates; infinite where it is unknown."""
    if options.price is None:
        return math.inf
    return options.price.cost_usd(Usage(need.prompt_tokens, need.max_tokens))


def why_not(backend: RemoteBackend, need: Need) -> str | None:
    """Why a remote cannot answer now, as one clause; None when it can."""
    options = backend.options
    who = f"{options.model} at {options.host}"
    if missing := sorted(need.capabilities - options.capabilities):
        return f"{who} is not said to do {', '.join(missing)}"
    tokens = need.prompt_tokens + need.max_tokens
    if options.context_tokens is not None and tokens > options.context_tokens:
        return f"{who} holds {options.context_tokens} tokens, {tokens} may be needed"
    if wait_s := backend.wait_s():
        return f"{who} is left alone for {wait_s:.0f} s after failures"
    return None
