"""What the first and the last event of a remote answer say."""

from __future__ import annotations

import time

from edgellm.routing.remote.answer import Answer
from edgellm.routing.remote.options import RemoteOptions
from edgellm.routing.remote.watch import Watch
from edgellm.routing.remote.wire import Outgoing
from edgellm.stream import Delta, Done, Request, Route, Start, Timings, Usage


def who(options: RemoteOptions) -> str:
    return f"{options.model} at {options.host}"


def start(
    options: RemoteOptions,
    request: Request,
    outgoing: Outgoing,
    answer: Answer,
    first: Delta | None,
) -> Start:
    """The first event; its prompt tokens are an estimate, since servers count at the end."""
    notices = list(outgoing.notices)
    if not answer.streamed:
        notices.append(f"{who(options)} does not stream: the answer comes in one piece")
    asked = request.logprobs is not None and "logprobs" in options.capabilities
    if asked and first is not None and not first.logprobs:
        notices.append(f"{who(options)} sends no log-probabilities")
    return Start(options.model, outgoing.prompt_tokens, notices=tuple(notices))


def done(
    options: RemoteOptions,
    answer: Answer,
    counted: tuple[Usage, str | None],
    watch: Watch,
    trouble: list[str],
) -> Done:
    """The last event. Speeds contain the network; a cost of 0 with an unknown price says so."""
    usage, note = counted
    now = time.monotonic()
    first = watch.first_token or now
    wait_s, decode_s = first - watch.started, now - first
    # One piece has no pace.
    later = max(usage.completion_tokens - 1, 0) if answer.pieces > 1 else 0
    notes = [f"asked {who(options)}", *([note] if note else [])]
    if answer.malformed:
        notes.append(f"{answer.malformed} malformed lines skipped")
    if answer.reasoning:
        notes.append("its reasoning is not shown")
    notes += trouble
    if options.price is None:
        notes.append("its price is not known")
    return Done(
        finish_reason=answer.finish_reason,
        usage=usage,
        timings=Timings(
            load_ms=0.0,
            first_token_ms=wait_s * 1e3,
            prefill_tokens_per_s=usage.prompt_tokens / wait_s if wait_s > 0 else 0.0,
            decode_tokens_per_s=later / decode_s if decode_s > 0 else 0.0,
        ),
        route=Route(
            source="remote",
            policy="remote-only",
            reason="; ".join(notes),
            cost_usd=0.0 if options.price is None else options.price.cost_usd(usage),
        ),
    )


def past_trouble(attempts: int, maybe_billed: int) -> list[str]:
    """What went before the attempt that was answered."""
    notes = []
    if attempts > 1:
        notes.append(f"answered at attempt {attempts}")
    if maybe_billed:
        notes.append(f"{maybe_billed} failed requests may be billed too")
    return notes
