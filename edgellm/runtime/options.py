"""How a bundle is loaded: what the user may decide before the first token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import UsageError

# More threads than any device has: a larger number is a typing error, not a wish.
THREADS_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Settings of one load.

    `context_tokens` None means: as much as the request and the memory plan allow. `provider`
    "auto" takes the best one that is installed; `require_provider` refuses to fall back from a
    named one to the CPU. `threads` None leaves the number to the runtime. `offline` fetches
    nothing. `lora` is the folder of an adapter for a bundle that was exported with room for one.
    """

    context_tokens: int | None = None
    provider: str = "auto"
    require_provider: bool = False
    threads: int | None = None
    offline: bool = False
    lora: Path | None = None

    def __post_init__(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 1:
            raise UsageError(f"the context must be 1 token or more, got {self.context_tokens}")
        if self.threads is not None and not 1 <= self.threads <= THREADS_LIMIT:
            raise UsageError(f"threads must be in [1, {THREADS_LIMIT}], got {self.threads}")
        if not self.provider:
            raise UsageError("the execution provider needs a name; use auto to let edgellm choose")
        if self.require_provider and self.provider == "auto":
            raise UsageError("requiring a provider needs its name: --require-ep with --ep NAME")
