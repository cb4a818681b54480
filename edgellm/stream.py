"""The vocabulary every part speaks: a Backend turns a Request into a stream of events.

    Request ── Backend.stream ──▶ Start, Delta, Delta, …, Done ── complete ──▶ Completion

Text is made in this one way; not streaming is a fold (`complete`). Every refusal is raised before
`Start`, so whoever pulls the first event knows whether there will be an answer at all. Closing the
iterator stops the work and frees what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edgellm.errors import UsageError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant"):
            raise UsageError(f"unknown role {self.role!r}; use system, user or assistant")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one token is chosen from the logits. The defaults are neutral: greedy, no penalties.

    Penalties count each token once within the last `penalty_window` tokens; 0 means the whole
    context. `repeat_penalty` divides positive logits (CTRL, arXiv:1909.05858), presence and
    frequency penalties subtract, as OpenAI documents them.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature <= 100, "in [0, 100]")
        _check("top_k", self.top_k, 0 <= self.top_k < 2**31, "0 (off) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "in [0, 1]")
        _check("repeat_penalty", self.repeat_penalty, 0 < self.repeat_penalty <= 10, "in (0, 10]")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(name, value, -2 <= value <= 2, "in [-2, 2]")
        window = self.penalty_window
        _check("penalty_window", window, 0 <= window < 2**31, "0 (all) or more")
        if self.seed is not None:
            _check("seed", self.seed, 0 <= self.seed < 2**64, "in [0, 2**64)")


def _check(name: str, value: float, ok: bool, allowed: str) -> None:
    # `ok` first: isfinite cannot take an integer beyond the range of a float.
    if not (ok and math.isfinite(value)):
        raise UsageError(f"{name} must be {allowed}, got {value}")


@dataclass(frozen=True, slots=True)
class Request:
    """One question. Either `messages` (rendered by the model's chat template) or a raw `prompt`.

    `sampling` None means what the bundle recommends. `logprobs` N reports the N likeliest
    alternatives of every decoded token (0: only the chosen one). `observe` asks for what a router
    reads from the same pass: `logprobs` of at least 0 with entropies, and `Done.hidden`.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    max_tokens: int = 512
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    observe: bool = False

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.prompt is not None):
            raise UsageError("a request needs either messages or a raw prompt, not both or neither")
        _check("max_tokens", self.max_tokens, 1 <= self.max_tokens < 2**31, "1 or more")
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0 <= self.logprobs <= 20, "in [0, 20]")
        if len(self.stop) > 16 or not all(self.stop):
            raise UsageError("stop takes up to 16 strings, none of them empty")

    @staticmethod
    def user(text: str, system: str | None = None) -> Request:
        """A request with one user message, after an optional system message."""
        head = (Message("system", system),) if system else ()
        return Request(messages=(*head, Message("user", text)))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A decoded token, its natural-log probability before temperature, and its rivals.

    `entropy` in nats is that of the whole distribution, `margin` the logarithm of how much likelier
    the likeliest token was than the next; both only where the request says `observe`.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()
    entropy: float | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states (D,) of the bundle's probe layer, float32: after the last prompt token, the
    mean over the prompt tokens that were prefilled, the mean over the answer's tokens."""

    prompt_last: Sequence[float]
    prompt_mean: Sequence[float]
    answer_mean: Sequence[float]


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """`first_token_ms` runs from the request to the first decoded token, without `load_ms`."""

    load_ms: float
    first_token_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Placement:
    """What one execution provider carries: graph nodes, and its share of the weight bytes."""

    nodes: int
    weight_share: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes (1e6 bytes). `predicted_mb` is the plan made before the load."""

    weights_mb: float
    kv_mb: float
    peak_rss_mb: float
    predicted_mb: float


@dataclass(frozen=True, slots=True)
class Route:
    source: Literal["local", "remote"] = "local"
    policy: str = "local-only"
    reason: str = "policy local-only: nothing leaves this machine"
    p_correct: float | None = None
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """The prompt is accepted; `notices` are lines the user should see (for example a fallback)."""

    model: str
    prompt_tokens: int
    cached_tokens: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer: always whole characters, never part of a stop string."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Replace:
    """What was shown so far is void: the answer starts again from another source."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    placement: Mapping[str, Placement] = field(default_factory=dict)
    memory: Memory | None = None
    route: Route = field(default_factory=Route)
    hidden: Hidden | None = None


Event = Start | Delta | Replace | Done


class Backend(Protocol):
    """Anything that answers: a local model, a remote one, a router over both."""

    def stream(self, request: Request) -> Iterator[Event]: ...


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. See `Done` for the figures."""

    text: str
    model: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    placement: Mapping[str, Placement]
    memory: Memory | None
    route: Route
    logprobs: tuple[TokenLogprob, ...]


def complete(events: Iterable[Event]) -> Completion:
    """The whole answer of a stream; raises whatever the stream raises."""
    start: Start | None = None
    deltas: list[Delta] = []
    for event in events:
        match event:
            case Start():
                start = event
            case Delta():
                deltas.append(event)
            case Replace():
                deltas.clear()
            case Done() if start is not None:
                return Completion(
                    text="".join(delta.text for delta in deltas),
                    model=start.model,
                    finish_reason=event.finish_reason,
                    usage=event.usage,
                    timings=event.timings,
                    placement=event.placement,
                    memory=event.memory,
                    route=event.route,
                    logprobs=tuple(token for delta in deltas for token in delta.logprobs),
                )
    raise UsageError("the stream ended before Done; it was closed or its Backend is broken")
