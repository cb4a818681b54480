"""How far a bundle is from the float weights on text: mean KL and how often both agree.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm_export.checks import SelfCheckFailed
from edgellm_export.recipe import Recipe
from edgellm_export.weights import Float32

# Enough for a mean KL within about a tenth; numpy takes a second for them on SmolLM2-135M.
TOKENS = 256
# Numbers in one table of logits (64 MB): a vocabulary of 250,000 is compared on fewer tokens.
LOGITS = 1 << 24
# Below that many a share says little, and models that know nothing are sure of nothing.
SURE_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Fidelity:
    """KL(float ‖ bundle) in nats, its mean over `tokens`, and the share of these at which both
    prefer the same token. The float model is sure of a token that it gives more than half of the
    probability; `sure_top1` is the same share among those, None without any."""

    tokens: int
    kl: float
    top1: float
    sure_tokens: int
    sure_top1: float | None

    def check(self, recipe: Recipe) -> None:
        """SelfCheckFailed when this is worse than the recipe allows."""
        limits, shown = recipe.limits, self.sure_top1
        enough = shown is None or self.sure_tokens < SURE_TOKENS or shown >= limits.min_top1
        if self.kl <= limits.max_kl and enough:
            return
        raise SelfCheckFailed(
            f"the bundle failed its self-check: on {self.tokens} tokens of text its mean KL from "
            f"the float weights is {self.kl:.3g} ({recipe.name} allows {limits.max_kl:g}) and it "
            f"agrees at {_percent(shown)} of {self.sure_tokens} sure tokens ({limits.min_top1:.0%} "
            f"needed); nothing was published; {_advice(recipe)}"
        )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"


def _advice(recipe: Recipe) -> str:
    if not recipe.rounds:
        return "report this with the model's name"
    return "use more bits" if recipe.is_calibrated else "use --calibrate or more bits"


def measure(expected: Float32, found: Float32) -> Fidelity:
    """Of logits (T, V) against those expected, row by row in pieces."""
    tokens = len(expected)
    kl, same, sure, sure_same = 0.0, 0, 0, 0
    for a, b in _pieces(expected, found):
        p, q = _log_softmax(a), _log_softmax(b)
        chances = np.exp(p)
        kl += float(np.einsum("tv,tv->", chances, p - q, dtype=np.float64))
        agreed = p.argmax(axis=-1) == q.argmax(axis=-1)
        certain = chances.max(axis=-1) > 0.5
        same, sure = same + int(agreed.sum()), sure + int(certain.sum())
        sure_same += int((agreed & certain).sum())
    share = sure_same / sure if sure else None
    return Fidelity(tokens, max(kl / tokens, 0.0), same / tokens, sure, share)


def _pieces(a: Float32, b: Float32) -> Iterator[tuple[Float32, Float32]]:
    """Rows of both, a few at a time: temporaries stay small."""
    for start in range(0, len(a), 16):
        yield a[start : start + 16], b[start : start + 16]


def _log_softmax(logits: Float32) -> Float32:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Float32 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def token_count(vocab_size: int, context_length: int) -> int:
    """How many tokens of text are compared."""
    return min(TOKENS, context_length, max(LOGITS // vocab_size, 64))


def sample() -> str:
    """The text for a bundle that was not calibrated on another: prose, code, dialogue, facts."""
    return (Path(__file__).parent / "sample.txt").read_text(encoding="utf-8")
