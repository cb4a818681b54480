"""Which remote, what it can do, what it costs and how long it may take."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field
from typing import Literal, NoReturn
from urllib.parse import urlsplit

from edgellm.errors import UsageError
from edgellm.stream import Usage

# What a remote may understand beyond messages, temperature, top_p, the two OpenAI penalties, stop
# and max_tokens. The last four are sampling parameters under the names llama.cpp and vLLM use.
CAPABILITIES = frozenset(
    {"tools", "json", "prefill", "logprobs", "seed", "max_completion_tokens"}
    | {"top_k", "min_p", "repeat_penalty", "penalty_window"}
)
# What every OpenAI-compatible server of note takes; a remote that does not says so with a 400.
USUAL = frozenset({"logprobs", "seed"})
PrefillStyle = Literal["message", "prefix", "continue_final_message"]
LOOPBACK_NAMES = ("localhost", "localhost.localdomain")


class Secret:
    """A text that shows itself only to `reveal`: not in reprs, logs, copies or pickles."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """UsageError, without the text, when it cannot be an HTTP header."""
        if not re.fullmatch(r"[\x21-\x7e]+", text):
            raise UsageError("the remote key must be printable ASCII without spaces; copy it again")
        self._text = text

    def reveal(self) -> str:
        return self._text

    def hide(self, text: str) -> str:
        """`text` without this secret, for messages that quote a server."""
        return text.replace(self._text, "[key]")

    def __repr__(self) -> str:
        return "Secret(…)"

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written down")


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens."""

    input_usd_per_million: float
    output_usd_per_million: float

    def __post_init__(self) -> None:
        for usd in (self.input_usd_per_million, self.output_usd_per_million):
            if not (math.isfinite(usd) and usd >= 0):
                raise UsageError(f"a price must be 0 or more dollars a million tokens, got {usd}")

    def cost_usd(self, usage: Usage) -> float:
        """What `usage` costs. Discounts for cached tokens are not counted: rather too much."""
        paid = usage.prompt_tokens * self.input_usd_per_million
        return (paid + usage.completion_tokens * self.output_usd_per_million) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. `first_token_s` bounds everything before the first token, retries included;
    `idle_s` the silence between two pieces of the answer; `total_s` the whole call."""

    connect_s: float = 5.0
    first_token_s: float = 30.0
    idle_s: float = 15.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "first_token_s", "idle_s", "total_s"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise UsageError(f"{name} must be more than 0 seconds, got {seconds}")


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` requests at most; pauses are drawn from [0, min(cap, backoff · 2ⁿ)] seconds: full
    jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015)."""

    attempts: int = 3
    backoff_s: float = 0.5
    backoff_cap_s: float = 8.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 10:
            raise UsageError(f"attempts must be in [1, 10], got {self.attempts}")
        for seconds in (self.backoff_s, self.backoff_cap_s):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise UsageError(f"a pause must be 0 seconds or more, got {seconds}")


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """One remote. `url` is the base that ends in /v1; lower `tier`s are asked first.

    `price` None is unknown, which is not free. `context_tokens` None is unknown too.
    `prefill_style` says how the remote is told to go on from given text: by a last assistant
    message alone (llama.cpp), one marked `prefix` (DeepSeek, Mistral), or vLLM's
    `continue_final_message`. An unencrypted address is refused unless it is this machine or
    `allow_plain_http` says so; proxies of the environment are used only where `use_proxies` does,
    since a proxy is one more machine that sees where text goes.
    """

    url: str
    model: str
    key: Secret | str | None = None
    tier: int = 0
    context_tokens: int | None = None
    price: Price | None = None
    capabilities: frozenset[str] = USUAL
    prefill_style: PrefillStyle = "message"
    limits: Limits = field(default_factory=Limits)
    retry: Retry = field(default_factory=Retry)
    allow_plain_http: bool = False
    use_proxies: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _base_url(self.url, self.allow_plain_http))
        object.__setattr__(self, "capabilities", frozenset(self.capabilities))
        if isinstance(self.key, str):
            object.__setattr__(self, "key", Secret(self.key))
        unknown = sorted(self.capabilities - CAPABILITIES)
        if unknown:
            known = ", ".join(sorted(CAPABILITIES))
            raise UsageError(f"unknown capability {unknown[0]!r}; known are {known}")
        if not self.model:
            raise UsageError("a remote needs the name of its model: --remote-model NAME")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise UsageError(f"a context must be 1 token or more, got {self.context_tokens}")

    @property
    def secret(self) -> Secret | None:
        """The key as what it is after the check."""
        return Secret(self.key) if isinstance(self.key, str) else self.key

    @property
    def attempts(self) -> int:
        """How many requests one call may come to."""
        return self.retry.attempts

    @property
    def host(self) -> str:
        """The host's name in lower case, without a port."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _base_url(url: str, allow_plain_http: bool) -> str:
    """`url` without a closing slash and with a path; UsageError when a key could leak from it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        # Python's own message may quote what stands before the host, so it is no cause.
        raise UsageError("the remote's address is not a URL; write https://HOST/v1") from None
    if parts.scheme not in ("http", "https") or not host or not url.isascii():
        raise UsageError("the remote's address must look like https://HOST/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"the address of {host} must end with its path; a key belongs into EDGELLM_REMOTE_KEY"
        )
    if parts.scheme == "http" and not (is_loopback(host) or allow_plain_http):
        raise UsageError(
            f"http://{host} would carry prompts and key unencrypted; write https://, or set "
            "allow_plain_http for a network you trust"
        )
    path = re.sub(r"/(chat/)?completions$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
