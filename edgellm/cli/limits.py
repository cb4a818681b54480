"""Options that say what may leave this machine and what remote answers may cost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from edgellm.cli.options import gathered, refuse
from edgellm.routing.options import PRIVACY_MODES, PrivacyMode
from edgellm.settings import current

if TYPE_CHECKING:
    from edgellm.routing.budget import BudgetOptions
    from edgellm.routing.privacy.options import PrivacyOptions
    from edgellm.routing.remote.options import Price, RemoteOptions


def make_remote(
    remote: str | None, remote_model: str | None, remote_price: str | None
) -> RemoteOptions | None:
    """The remote of the arguments and the environment, None when there is none.

    Its price is the argument, else that of the user's price table, else unknown.
    """
    chosen = current({"remote_url": remote, "remote_model": remote_model})
    if chosen.remote_url is None and chosen.remote_model is None:
        refuse(remote_price is not None, "--remote-price needs --remote URL --remote-model NAME")
        return None
    from edgellm.routing.remote.configure import from_settings

    found = from_settings(chosen)
    if found is None or remote_price is None:
        return found
    return replace(found, price=price(remote_price))


def price(text: str) -> Price:
    """`IN,OUT` as dollars for a million tokens."""
    from edgellm.routing.remote.options import Price

    parts = text.split(",")
    try:
        dollars = [float(part) for part in parts]
    except ValueError:
        dollars = []
    refuse(len(dollars) != 2, f"--remote-price must look like 0.15,0.60, got {text!r}")
    return Price(*dollars)


def make_privacy(privacy: PrivacyMode | None, deny: tuple[str, ...]) -> PrivacyOptions:
    """What must stay here; patterns of the project file come on top of the arguments."""
    from edgellm.routing.privacy.options import PrivacyOptions

    chosen = current({"privacy": privacy})
    return PrivacyOptions(chosen.privacy, deny=(*deny, *chosen.deny))  # type: ignore[arg-type]


def make_budget(
    budget: float | None,
    budget_month: float | None,
    budget_session: float | None,
    budget_tokens: int | None,
) -> BudgetOptions:
    """The caps of the arguments and the project file."""
    from edgellm.routing.budget import BudgetOptions

    said = {
        "budget": budget,
        "budget_month": budget_month,
        "budget_session": budget_session,
        "budget_tokens": budget_tokens,
    }
    chosen = current(said)
    return BudgetOptions(
        chosen.budget, chosen.budget_month, chosen.budget_session, chosen.budget_tokens
    )


remote_options = gathered(
    "remote",
    make_remote,
    click.option("--remote", metavar="URL", help="A server that speaks OpenAI's chat API."),
    click.option("--remote-model", metavar="NAME", help="The model to ask there."),
    click.option("--remote-price", metavar="IN,OUT", help="USD for a million tokens."),
)
privacy_options = gathered(
    "privacy",
    make_privacy,
    click.option(
        "--privacy",
        type=click.Choice(PRIVACY_MODES),
        help="What becomes of private data; default pin-local.",
    ),
    click.option("--deny", multiple=True, metavar="REGEX", help="Never send this; repeatable."),
)
budget_options = gathered(
    "budget",
    make_budget,
    click.option("--budget", type=float, metavar="USD", help="Cap of remote answers, each day."),
    click.option("--budget-month", type=float, metavar="USD", help="The same, each month."),
    click.option("--budget-session", type=float, metavar="USD", help="The same, for this call."),
    click.option("--budget-tokens", type=int, metavar="N", help="Cap in tokens, each day."),
)
