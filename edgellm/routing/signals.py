"""What one local answer shows of itself, as numbers: the signals of the router.

Everything comes out of the pass that made the answer. Quantiles of token log-probabilities instead
of their sum or mean keep long answers from looking worse (Gupta et al., arXiv:2404.10136).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.routing.validators import VALIDATORS
from edgellm.stream import FinishReason, Hidden, TokenLogprob

Float64 = NDArray[np.float64]

LOGPROB_QUANTILES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
ENTROPY_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
MARGIN_QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5)
# A token counts as a guess below this log-probability: its rivals together were likelier.
GUESS = math.log(0.5)


@dataclass(frozen=True, slots=True)
class Observed:
    """A local answer, finished or (`finish_reason` None) so far. `prompt` is the last user turn."""

    prompt: str
    prompt_tokens: int
    tokens: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    hidden: Hidden | None
    text: str


TOKEN_FEATURES = (
    *(f"logprob_q{q:g}" for q in LOGPROB_QUANTILES),
    *(f"entropy_q{q:g}" for q in ENTROPY_QUANTILES),
    *(f"margin_q{q:g}" for q in MARGIN_QUANTILES),
    "logprob_mean", "logprob_sum", "logprob_first", "logprob_second_lowest", "logprob_last_third",
    "entropy_mean", "entropy_first", "entropy_rise", "margin_mean", "margin_first",
    "guesses", "guess_share", "lowest_at", "answer_tokens", "prompt_tokens", "cut_short",
    "repeated",
)  # fmt: skip
FEATURES = (*TOKEN_FEATURES, *(f"valid_{name}" for name in VALIDATORS))


# What `route explain` shows. Lowest, typical and first log-probability lead the single signals of
# the note on recorded answers; the others say how an answer goes wrong.
TELLING = (
    "logprob_q0", "logprob_q0.1", "logprob_mean", "logprob_first", "entropy_mean", "margin_mean",
    "guess_share", "repeated", "cut_short",
)  # fmt: skip


def features(observed: Observed) -> Float64:
    """The signals (F,) in the order of FEATURES; of an answer without tokens, all of them zero but
    the lengths."""
    return np.concatenate([token_features(observed), validator_features(observed)])


def telling(observed: Observed) -> dict[str, float]:
    """The few signals that tell a person most, by name; of the validators those with a say."""
    named = dict(zip(FEATURES, features(observed).tolist(), strict=True))
    told = {name: round(named[name], 4) for name in TELLING}
    validators = [name for name in FEATURES if name.startswith("valid_") and named[name]]
    counts = {
        "answer_tokens": float(len(observed.tokens)),
        "prompt_tokens": float(observed.prompt_tokens),
    }
    return told | {name: named[name] for name in validators} | counts


def validator_features(observed: Observed) -> Float64:
    """One number for each validator: 1 says right, -1 wrong, 0 has nothing to say."""
    checks = [check(observed.prompt, observed.text) for check in VALIDATORS.values()]
    return np.array(checks, np.float64)


def token_features(observed: Observed) -> Float64:
    """The signals of the tokens alone, in the order of TOKEN_FEATURES."""
    tokens = observed.tokens
    logprob = np.array([t.logprob for t in tokens] or [0.0])
    # A backend that does not observe entropies leaves these signals constant, hence unused.
    entropy = np.array([t.entropy or 0.0 for t in tokens] or [0.0])
    margin = np.array([t.margin or 0.0 for t in tokens] or [0.0])
    count = len(tokens)
    rising = np.sort(logprob)
    third = max(1, count // 3)
    guesses = float((logprob < GUESS).sum())
    summary = (
        logprob.mean(), logprob.sum(), logprob[0], rising[min(1, len(rising) - 1)],
        logprob[-third:].mean(), entropy.mean(), entropy[0],
        entropy[-third:].mean() - entropy[:third].mean(), margin.mean(), margin[0],
        math.log1p(guesses), guesses / max(count, 1), float(logprob.argmin()) / max(count, 1),
        math.log1p(count), math.log1p(observed.prompt_tokens),
        float(observed.finish_reason == "length"), repeated([t.token_id for t in tokens]),
    )  # fmt: skip
    return np.concatenate(
        [
            quantiles(rising, LOGPROB_QUANTILES),
            quantiles(np.sort(entropy), ENTROPY_QUANTILES),
            quantiles(np.sort(margin), MARGIN_QUANTILES),
            np.array(summary, np.float64),
        ]
    )


def quantiles(rising: Float64, shares: Sequence[float]) -> Float64:
    """np.quantile of sorted values, without its checks, which take most of its time."""
    place = np.array(shares) * (len(rising) - 1)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, len(rising) - 1)
    found: Float64 = rising[below] + (rising[above] - rising[below]) * (place - below)
    return found


def repeated(ids: Sequence[int], width: int = 3) -> float:
    """The share of `width`-grams that came before already: near 1 where an answer loops."""
    grams = [tuple(ids[i : i + width]) for i in range(len(ids) - width + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
