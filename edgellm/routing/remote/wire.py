"""OpenAI's wire format, as pure functions: a Request becomes bytes, JSON becomes Chunks.

What a Request asks for is sent, or refused, or named in a notice; nothing is dropped in silence.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from edgellm.errors import Refused, UsageError
from edgellm.routing.remote.options import RemoteOptions
from edgellm.routing.tokens import prompt_estimate
from edgellm.stream import FinishReason, Request, Sampling, TokenLogprob, Usage

# What Sampling calls it, and what llama.cpp, vLLM and their kin do.
EXTRA_NAMES = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "penalty_window": "repeat_last_n",
}
FINISHED: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The exact bytes of a body, the path below the base URL, what the user should know.

    `echo` is the text to go on from, which the answer may begin with again.
    """

    path: str
    body: bytes
    notices: tuple[str, ...]
    prompt_tokens: int
    echo: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of an answer. `alive` is true for text nobody sees too: reasoning."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    usage: object = None
    reasoning: bool = False
    tools: bool = False
    error: object = None


def encode(options: RemoteOptions, request: Request, prefix: str = "") -> Outgoing:
    """What goes out for `request`, going on from `prefix`. Refused when the remote cannot do it."""
    body: dict[str, Any] = {"model": options.model}
    if request.prompt is not None:
        body["prompt"] = request.prompt + prefix
    else:
        body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        if prefix:
            _prefill(options, prefix, body)
    length = "max_tokens"
    if "max_completion_tokens" in options.capabilities and request.prompt is None:
        length = "max_completion_tokens"
    body[length] = request.max_tokens
    notices = _sampling(options, request.sampling, body)
    if request.stop:
        body["stop"] = list(request.stop)
    notices += _logprobs(options, request, body)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Outgoing(
        path="/chat/completions" if request.prompt is None else "/completions",
        body=json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"),
        notices=tuple(notices),
        prompt_tokens=prompt_estimate(request, prefix),
        echo=prefix if request.prompt is None else "",
    )


def _prefill(options: RemoteOptions, prefix: str, body: dict[str, Any]) -> None:
    if "prefill" not in options.capabilities:
        raise Refused(
            f"{options.model} at {options.host} is not said to go on from given text; name the "
            "capability prefill, or ask it from the start"
        )
    message: dict[str, Any] = {"role": "assistant", "content": prefix}
    body["messages"].append(message)
    if options.prefill_style == "prefix":
        message["prefix"] = True
    elif options.prefill_style == "continue_final_message":
        body |= {"continue_final_message": True, "add_generation_prompt": False}


def _sampling(options: RemoteOptions, chosen: Sampling | None, body: dict[str, Any]) -> list[str]:
    """Adds how tokens are chosen; None leaves it to the remote. Returns what cannot be said."""
    if chosen is None:
        return []
    # Neutral values are sent too: a server's own defaults may be others (llama.cpp's are).
    body |= {"temperature": chosen.temperature, "top_p": chosen.top_p}
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(chosen, name):
            body[name] = value
    neutral = Sampling()
    penalised = (chosen.presence_penalty, chosen.frequency_penalty, chosen.repeat_penalty - 1)
    unsaid = []
    for name, spelling in EXTRA_NAMES.items():
        value = getattr(chosen, name)
        if name in options.capabilities:
            body[spelling] = value
        elif name == "penalty_window":
            # OpenAI's penalties count the whole text, which is what a window of 0 means.
            if any(penalised) and value:
                unsaid.append(f"{name} {value}")
        elif value != getattr(neutral, name):
            unsaid.append(f"{name} {value:g}")
    if chosen.seed is not None:
        _seed(options, chosen.seed, body, unsaid)
    if not unsaid:
        return []
    return [f"not sent to {options.model}: {', '.join(unsaid)} (not among its capabilities)"]


def _seed(options: RemoteOptions, seed: int, body: dict[str, Any], unsaid: list[str]) -> None:
    if "seed" not in options.capabilities:
        unsaid.append(f"seed {seed}")
    elif seed >= 2**63:
        raise UsageError(f"a remote's seed must be below 2**63, got {seed}")
    else:
        body["seed"] = seed


def _logprobs(options: RemoteOptions, request: Request, body: dict[str, Any]) -> list[str]:
    notices = []
    if request.observe:
        notices.append(f"{options.model} shows neither entropies nor hidden states: it is remote")
    if request.logprobs is None:
        return notices
    if "logprobs" not in options.capabilities:
        return [*notices, f"not asked of {options.model}: log-probabilities (not a capability)"]
    if request.prompt is not None:
        body["logprobs"] = request.logprobs
    else:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    return notices


def decode(raw: dict[str, Any]) -> Chunk:
    """A chunk of a stream, or a whole answer: `message` is read where there is no `delta`.

    ValueError when it has another shape: the line counts as malformed.
    """
    if raw.get("error"):
        return Chunk(error=raw["error"])
    choices = raw.get("choices")
    if not isinstance(choices, list):
        if isinstance(raw.get("usage"), dict):
            return Chunk(usage=raw["usage"])
        raise ValueError("no choices")
    mine = [c for c in choices if isinstance(c, dict) and c.get("index", 0) == 0]
    if not mine:
        return Chunk(usage=raw.get("usage"))
    choice = mine[0]
    delta = choice.get("delta") or choice.get("message") or {}
    if not isinstance(delta, dict):
        raise ValueError("a delta that is no object")
    text = delta.get("content", choice.get("text"))
    finish = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise ValueError("text or finish reason of another type")
    return Chunk(
        text=text or "",
        logprobs=_read_logprobs(choice.get("logprobs")),
        finish=finish,
        usage=raw.get("usage"),
        reasoning=bool(delta.get("reasoning_content") or delta.get("reasoning")),
        tools=bool(delta.get("tool_calls") or delta.get("function_call")),
    )


def _read_logprobs(raw: object) -> tuple[TokenLogprob, ...]:
    """Tokens as far as they can be read. A remote tells no ids: they are -1."""
    if not isinstance(raw, dict):
        return ()
    try:
        if isinstance(raw.get("content"), list):
            return tuple(_chat_token(entry) for entry in raw["content"])
        return _legacy_tokens(raw)
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _chat_token(entry: dict[str, Any]) -> TokenLogprob:
    rivals = entry.get("top_logprobs") or ()
    top = tuple((str(rival["token"]), -1, _finite(rival["logprob"])) for rival in rivals)
    return TokenLogprob(str(entry["token"]), -1, _finite(entry["logprob"]), top)


def _legacy_tokens(raw: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """The shape of /completions: parallel lists."""
    names, values = raw.get("tokens") or (), raw.get("token_logprobs") or ()
    tops = raw.get("top_logprobs") or [{}] * len(names)
    return tuple(
        TokenLogprob(
            str(name), -1, _finite(value), tuple((t, -1, _finite(p)) for t, p in top.items())
        )
        for name, value, top in zip(names, values, tops, strict=True)
        if value is not None
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


def read_usage(raw: object) -> Usage | None:
    """The token counts a server reports, None when they cannot be read."""
    if not isinstance(raw, dict):
        return None
    counts = [raw.get("prompt_tokens"), raw.get("completion_tokens")]
    details = raw.get("prompt_tokens_details")
    counts.append(details.get("cached_tokens") or 0 if isinstance(details, dict) else 0)
    if not all(type(count) is int and 0 <= count < 2**31 for count in counts):
        return None
    prompt, completion, cached = counts
    return Usage(prompt or 0, completion or 0, cached or 0)
