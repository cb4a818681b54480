"""`edgellm route explain`: why one answer came from where it came."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgellm.cli.options import refuse
from edgellm.cli.routing.log import line, open_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellm.routing.ledger import Decision


@click.command("explain")
@click.argument("request_id", default="last")
@click.option("--good", is_flag=True, help="Note that the answer was right.")
@click.option("--bad", is_flag=True, help="Note that the answer was wrong.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(request_id: str, good: bool, bad: bool, json_: bool) -> None:
    """Tell why an answer came from where it came; REQUEST_ID is from `route log`, or `last`.

    \b
    edgellm route explain
    edgellm route explain 3f2a --bad
    """
    refuse(good and bad, "give one of --good and --bad")
    ledger = open_ledger()
    if good or bad:
        ledger.feedback(request_id, good)
    found = ledger.find(request_id)
    if json_:
        click.echo(json.dumps(asdict(found)))
        return
    for text in story(found):
        click.echo(text)


def story(decision: Decision) -> Iterator[str]:
    """The decision, every call that was made for it, and what became of it."""
    yield line(decision)
    yield f"policy      {decision.policy}"
    if decision.p_before is not None:
        yield f"before      P(correct) {decision.p_before:.3f} from the prompt alone"
    if decision.p_after is not None:
        yield f"after       P(correct) {decision.p_after:.3f} of the local answer"
    if 0 < decision.propensity < 1:
        yield f"chance      the remote was asked with probability {decision.propensity:g}"
    for attempt in decision.attempts:
        usage = attempt["usage"]
        yield (
            f"{attempt['source']:<11} {attempt['outcome']}, {usage['prompt_tokens']} + "
            f"{usage['completion_tokens']} tokens, first after {attempt['first_token_ms']:.0f} ms, "
            f"{attempt['total_ms']:.0f} ms, ${attempt['cost_usd']:.4f}"
            + (f"; {attempt['error']}" if attempt["error"] else "")
        )
    if decision.signals:
        told = ", ".join(f"{name} {value:g}" for name, value in decision.signals.items())
        yield f"signals     {told}"
    if decision.shadow_agrees is not None:
        yield f"shadow      the remote {'agreed' if decision.shadow_agrees else 'said otherwise'}"
    if decision.feedback is not None:
        yield f"feedback    you said {'good' if decision.feedback > 0 else 'bad'}"
    for name, value in decision.signals.items():
        yield f"signal      {name} {value:.3g}"
