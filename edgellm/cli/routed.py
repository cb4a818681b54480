"""A model in memory behind a router, as `run` and `chat` use it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli import backend
from edgellm.cli.backend import LoadedModel
from edgellm.cli.limits import budget_options, privacy_options, remote_options
from edgellm.cli.options import gathered, refuse, together
from edgellm.routing.options import POLICIES, Policy, RouterOptions
from edgellm.runtime.options import LoadOptions
from edgellm.settings import current
from edgellm.stream import Done, Event, Request, Route, Sampling

if TYPE_CHECKING:
    from edgellm.routing.budget import Budget, BudgetOptions
    from edgellm.routing.privacy import Guard, PrivacyOptions
    from edgellm.routing.remote import RemoteBackend, RemoteOptions
    from edgellm.routing.router import Router


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """What the user said about routing; `remote` None: there is nobody else to ask."""

    options: RouterOptions
    remote: RemoteOptions | None
    privacy: PrivacyOptions
    budget: BudgetOptions
    log_text: bool = False

    def __post_init__(self) -> None:
        refuse(
            self.options.policy != "local-only" and self.remote is None,
            f"--route {self.options.policy} needs a remote: --remote URL --remote-model NAME",
        )


def make_options(
    route: Policy | None,
    threshold: float | None,
    risk: float | None,
    shadow_share: float | None,
    passages: int | None,
) -> RouterOptions:
    """The policy, checked before a model is loaded for it."""
    refuse(None not in (threshold, risk), "give either --threshold or --risk, not both")
    said: dict[str, Any] = {
        "policy": route,
        "threshold": threshold,
        "risk": risk,
        "shadow_share": shadow_share,
        "passage_tokens": passages,
    }
    return RouterOptions(**{name: value for name, value in said.items() if value is not None})


policy_options = gathered(
    "options",
    make_options,
    click.option("--route", type=click.Choice(POLICIES), help="Who answers; default local-only."),
    click.option("--threshold", type=float, metavar="P", help="Answers as sure as P stay."),
    click.option("--risk", type=float, metavar="R", help="At most R of those wrong, certified."),
    click.option("--shadow-share", type=float, metavar="S", help="Of shadow, compared. [0.05]"),
    click.option("--passages", type=int, metavar="N", help="Of long texts send N tokens."),
)
route_options = together(
    policy_options,
    remote_options,
    privacy_options,
    budget_options,
    gathered(
        "route",
        RouteChoice,
        click.option("--log-text", is_flag=True, help="Log texts too, not only their hashes."),
    ),
)


@dataclass(frozen=True, slots=True)
class Abroad:
    """What stands between a model and its remote. `declined` are texts the user kept here."""

    guard: Guard
    remote: RemoteBackend
    budget: Budget
    declined: set[str] = field(default_factory=set)


class Routed:
    """A loaded model and its router: it answers by the router's policy.

    `notes` are lines that the user should see first. `abroad` None: there is no remote.
    """

    def __init__(
        self,
        model: LoadedModel,
        router: Router,
        abroad: Abroad | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.notes = notes
        self.abroad = abroad
        self.router = router
        self._model = model

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def default_sampling(self) -> Sampling:
        return self._model.default_sampling

    @property
    def policy(self) -> Policy:
        return self.router.options.policy

    @property
    def remotes(self) -> tuple[str, ...]:
        return self.router.remotes

    def under(self, policy: Policy) -> Routed:
        """The same under another policy; UsageError when it needs a remote and there is none."""
        other = copy(self)
        other.router = self.router.with_policy(policy)
        return other

    def stream(self, request: Request) -> Iterator[Event]:
        """The answer as events; see Router.stream."""
        yield from self.router.stream(request)

    def remarks(self, done: Done) -> Iterator[str]:
        """What is said after an answer: who gave it and why, and whether money runs out."""
        if done.route.policy == "local-only":
            return
        yield badge(done.route)
        notice = self.abroad.budget.notice() if self.abroad is not None else None
        if done.route.source == "remote" and notice is not None:
            yield notice


@contextmanager
def open_routed(reference: str, load: LoadOptions, choice: RouteChoice) -> Iterator[Routed]:
    """The model behind a reference with its router, until the `with` block is left."""
    from edgellm.routing.router import Router

    with backend.open_backend(reference, load) as model:
        if choice.remote is None:
            yield Routed(model, Router(model))
            return
        yield from _open_abroad(model, choice.remote, choice, load.offline)


def _open_abroad(
    model: LoadedModel, remote: RemoteOptions, choice: RouteChoice, offline: bool
) -> Iterator[Routed]:
    from edgellm.routing.budget import Budget
    from edgellm.routing.confidence.pack import Pack
    from edgellm.routing.database import Database
    from edgellm.routing.drift import careful
    from edgellm.routing.ledger import Ledger
    from edgellm.routing.privacy import Guard
    from edgellm.routing.remote import RemoteBackend
    from edgellm.routing.router import Router

    database, session = Database(database_path()), uuid.uuid4().hex
    abroad = Abroad(
        Guard(choice.privacy), RemoteBackend(remote), Budget(database, choice.budget, session)
    )
    pack = backend.open_confidence(model)
    options, alarm = replace(choice.options, offline=offline), None
    name = pack.about.weights_sha256 if isinstance(pack, Pack) else None
    ledger = Ledger(database, session, choice.log_text, pack=name)
    if isinstance(pack, Pack):
        options, alarm = careful(options, pack, ledger)
    parts = (abroad.guard, abroad.budget, ledger)
    with Router(model, (abroad.remote,), options, pack, *parts) as router:
        notes = tuple(note for note in (alarm, router.certificate) if note is not None)
        yield Routed(model, router, abroad, notes)


def database_path() -> Path:
    """Where budget and decisions are kept."""
    return current().home_folder() / "router" / "router.db"


def badge(route: Route) -> str:
    """Who answered, how surely, at what price, and why, in one line."""
    parts: list[str] = [route.source]
    if route.p_correct is not None:
        parts.append(f"p {route.p_correct:.2f}")
    if route.cost_usd:
        parts.append(f"${route.cost_usd:.4f}")
    return f"[{' · '.join([*parts, route.reason])}]"
