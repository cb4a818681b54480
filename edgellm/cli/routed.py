"""A model in memory behind a router, as `run` and `chat` use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli import backend
from edgellm.cli.backend import LoadedModel
from edgellm.cli.options import gathered, refuse
from edgellm.routing.options import POLICIES, Policy, RouterOptions
from edgellm.runtime.options import LoadOptions
from edgellm.settings import current
from edgellm.stream import Event, Request, Route, Sampling

if TYPE_CHECKING:
    from edgellm.routing.remote.options import RemoteOptions
    from edgellm.routing.router import Router


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """What the user said about routing; `remote` None: there is nobody else to ask."""

    options: RouterOptions
    remote: RemoteOptions | None = None


def make_route_choice(
    route: Policy | None,
    remote: str | None,
    remote_model: str | None,
    threshold: float | None,
    risk: float | None,
) -> RouteChoice:
    """The choice by the arguments and the environment, checked before a model is loaded for it."""
    refuse(None not in (threshold, risk), "give either --threshold or --risk, not both")
    said: dict[str, Any] = {"policy": route, "threshold": threshold, "risk": risk}
    options = RouterOptions(**{name: value for name, value in said.items() if value is not None})
    chosen = current({"remote_url": remote, "remote_model": remote_model})
    if chosen.remote_url is None and chosen.remote_model is None:
        refuse(
            options.policy != "local-only",
            f"--route {options.policy} needs a remote: --remote URL --remote-model NAME",
        )
        return RouteChoice(options)
    from edgellm.routing.remote.configure import from_settings

    return RouteChoice(options, from_settings(chosen))


route_options = gathered(
    "route",
    make_route_choice,
    click.option("--route", type=click.Choice(POLICIES), help="Who answers; default local-only."),
    click.option("--remote", metavar="URL", help="A server that speaks OpenAI's chat API."),
    click.option("--remote-model", metavar="NAME", help="The model to ask there."),
    click.option("--threshold", type=float, metavar="P", help="Answers as sure as P stay."),
    click.option("--risk", type=float, metavar="R", help="At most R of those wrong, certified."),
)


class Routed:
    """A loaded model and its router: it answers by the router's policy."""

    def __init__(self, model: LoadedModel, router: Router) -> None:
        self._model = model
        self._router = router

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def default_sampling(self) -> Sampling:
        return self._model.default_sampling

    @property
    def policy(self) -> Policy:
        return self._router.options.policy

    @property
    def remotes(self) -> tuple[str, ...]:
        return self._router.remotes

    @property
    def certificate(self) -> str | None:
        return self._router.certificate

    def under(self, policy: Policy) -> Routed:
        """The same under another policy; UsageError when it needs a remote and there is none."""
        return Routed(self._model, self._router.with_policy(policy))

    def stream(self, request: Request) -> Iterator[Event]:
        """The answer as events; see Router.stream."""
        yield from self._router.stream(request)


@contextmanager
def open_routed(reference: str, load: LoadOptions, choice: RouteChoice) -> Iterator[Routed]:
    """The model behind a reference with its router, until the `with` block is left."""
    from edgellm.routing.router import Router

    with backend.open_backend(reference, load) as model:
        remotes = () if choice.remote is None else (choice.remote,)
        guard = backend.open_guard() if remotes else None
        confidence = backend.open_confidence(model) if remotes else None
        options = replace(choice.options, offline=load.offline)
        with Router(model, remotes, options, confidence, guard) as router:
            yield Routed(model, router)


def badge(route: Route) -> str:
    """Who answered, how surely, at what price, and why, in one line."""
    parts: list[str] = [route.source]
    if route.p_correct is not None:
        parts.append(f"p {route.p_correct:.2f}")
    if route.cost_usd:
        parts.append(f"${route.cost_usd:.4f}")
    return f"[{' · '.join([*parts, route.reason])}]"
