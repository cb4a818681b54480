"""What others use, and what costs nothing: the signals that ours must beat.

Each turns recorded answers into trust (N,), higher meaning more likely right. Fitted ones get the
calibration split, as ours does. Signals that need more than one pass (P(True), self-consistency)
and per-token hidden states (attention-pooled probes) are not in the recordings and not here.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.routing.confidence import logistic
from edgellm.routing.confidence.fusion import PROBE_RIDGE, stack
from edgellm.routing.evaluation.records import Graded
from edgellm.routing.signals import FEATURES, LOGPROB_QUANTILES, token_features

Float64 = NDArray[np.float64]
Answers = tuple[Graded, ...]
Baseline = Callable[[Answers, Answers], Float64]

NGRAM_BUCKETS = 1024
NEIGHBOURS = 15
# Words that a keyword router counts as signs of a hard prompt, by dimension (after LiteLLM's seven
# of its auto router, which reads prompts alone).
HARD_WORDS: Mapping[str, str] = {
    "reasoning": r"\b(why|explain|prove|reason|step by step|because|therefore)\b",
    "code": r"\b(code|function|python|regex|algorithm|json|sql)\b",
    "mathematics": r"\d|\b(sum|plus|minus|times|convert|percent|equation)\b",
    "structure": r"\b(list|table|format|only with|exactly|fields?|keys?)\b",
    "constraints": r"\b(must|never|without|except|at least|at most|not)\b",
    "multi_part": r"[;?].*\?|\b(then|after that|also|finally)\b",
}


def _token(name: str, sign: float = 1.0) -> Baseline:
    """One signal as it is."""
    at = FEATURES.index(name)

    def score(_: Answers, test: Answers) -> Float64:
        return np.array([sign * token_features(g.observed)[at] for g in test])

    return score


def prompt_length(_: Answers, test: Answers) -> Float64:
    return np.array([-float(g.observed.prompt_tokens) for g in test])


def keywords(_: Answers, test: Answers) -> Float64:
    """Fewer signs of difficulty, more trust; the seventh dimension is the length."""

    def hardness(prompt: str) -> float:
        signs = [len(re.findall(p, prompt, re.IGNORECASE)) for p in HARD_WORDS.values()]
        return sum(min(count, 3) for count in signs) / 3 + len(prompt) / 400

    return np.array([-hardness(g.observed.prompt) for g in test])


def hedged_mixture(_: Answers, test: Answers) -> Float64:
    """cascadeflow's hand-set weights, as far as this setting has its parts: 0.5 mean probability,
    0.2 + 0.2 overlap of answer and prompt, 0.1 ease."""
    at = FEATURES.index("logprob_mean")
    means = np.array([np.exp(token_features(g.observed)[at]) for g in test])
    overlap = np.array([_overlap(g.observed.prompt, g.observed.text) for g in test])
    ease = 1 / (1 + np.exp(-keywords((), test)))
    return np.asarray(0.5 * means + 0.4 * overlap + 0.1 * ease)


def _overlap(prompt: str, answer: str) -> float:
    said, given = set(answer.lower().split()), set(prompt.lower().split())
    return len(said & given) / max(len(said), 1)


def prompt_ngrams(train: Answers, test: Answers) -> Float64:
    """A prompt classifier as RouteLLM's, of hashed character 3- and 4-grams."""
    model = logistic.fit(_ngrams(train), _correct(train), ridge=30.0)
    return model(_ngrams(test))


def _ngrams(answers: Answers) -> Float64:
    rows = np.zeros((len(answers), NGRAM_BUCKETS))
    for row, g in zip(rows, answers, strict=True):
        text = g.observed.prompt.lower()[:2000].encode()
        for width in (3, 4):
            for i in range(len(text) - width + 1):
                row[zlib.crc32(text[i : i + width]) % NGRAM_BUCKETS] += 1
        row /= max(float(np.linalg.norm(row)), 1e-9)
    return rows


def neighbours(train: Answers, test: Answers) -> Float64:
    """The share of right answers among the nearest prompts, by the prefill's mean hidden state."""
    known, _ = stack([g.observed.hidden for g in train])
    asked, _ = stack([g.observed.hidden for g in test])
    if known is None or asked is None:
        return np.full(len(test), np.nan)
    centre = known.mean(axis=0)
    known, asked = known - centre, asked - centre
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    nearest = np.argsort(-(asked @ known.T), axis=1)[:, :NEIGHBOURS]
    return np.asarray(_correct(train)[nearest].mean(axis=1))


def mean_pool_probe(train: Answers, test: Answers) -> Float64:
    """Logistic regression on the answer's mean hidden state (Cactus's second-best ablation)."""
    _, known = stack([g.observed.hidden for g in train])
    _, asked = stack([g.observed.hidden for g in test])
    if known is None or asked is None:
        return np.full(len(test), np.nan)
    return logistic.fit(known, _correct(train), PROBE_RIDGE)(asked)


def prefill_probe(train: Answers, test: Answers) -> Float64:
    """Logistic regression on the prompt's hidden states: before anything is generated."""
    known, asked = (
        [np.concatenate([g.observed.hidden.prompt_last, g.observed.hidden.prompt_mean])
         for g in answers if g.observed.hidden is not None]
        for answers in (train, test)
    )  # fmt: skip
    if len(known) < len(train) or len(asked) < len(test):
        return np.full(len(test), np.nan)
    model = logistic.fit(np.array(known, np.float64), _correct(train), 1000.0)
    return model(np.array(asked, np.float64))


def quantile_logistic(train: Answers, test: Answers) -> Float64:
    """Logistic regression on log-probability quantiles (Gupta et al., arXiv:2404.10136)."""
    model = logistic.fit(_quantiles(train), _correct(train), ridge=1.0)
    return model(_quantiles(test))


def _quantiles(answers: Answers) -> Float64:
    rows = np.array([token_features(g.observed) for g in answers])
    return np.asarray(rows[:, : len(LOGPROB_QUANTILES)])


def family_level(train: Answers, test: Answers) -> Float64:
    """The accuracy of the task and difficulty, as if both were known in advance: an oracle that no
    router has."""
    seen: dict[tuple[str, int], list[bool]] = {}
    for g in train:
        seen.setdefault((g.family, g.level), []).append(g.lenient)
    return np.array([np.mean(seen.get((g.family, g.level), [0.5])) for g in test])


def _correct(answers: Answers) -> NDArray[np.bool_]:
    return np.array([g.lenient for g in answers], bool)


@dataclass(frozen=True, slots=True)
class Named:
    """`when`: before or after generation; `fitted` ones need the calibration split."""

    name: str
    when: str
    score: Baseline
    fitted: bool = False


BASELINES = (
    Named("prompt length", "before", prompt_length),
    Named("keywords (7 dimensions)", "before", keywords),
    Named("prompt n-grams (RouteLLM-like)", "before", prompt_ngrams, True),
    Named("nearest prompts (hidden state)", "before", neighbours, True),
    Named("prefill hidden state", "before", prefill_probe, True),
    Named("first-token entropy (old Cactus)", "first token", _token("entropy_first", -1.0)),
    Named("answer length", "after", _token("answer_tokens", -1.0)),
    Named("sum of log-probabilities", "after", _token("logprob_sum")),
    Named("mean log-probability", "after", _token("logprob_mean")),
    Named("lowest log-probability", "after", _token("logprob_q0")),
    Named("mean entropy", "after", _token("entropy_mean", -1.0)),
    Named("hand-set weights (cascadeflow-like)", "after", hedged_mixture),
    Named("log-probability quantiles, logistic", "after", quantile_logistic, True),
    Named("answer hidden state, mean-pool probe", "after", mean_pool_probe, True),
    Named("family x level, known in advance", "oracle", family_level, True),
)
