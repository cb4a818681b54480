"""Graded answers made of numbers: a signal of known strength, no model."""

from __future__ import annotations

import numpy as np

from edgellm.routing.evaluation.records import Graded, Records
from edgellm.routing.signals import Observed
from edgellm.stream import Hidden, TokenLogprob

WIDTH = 16


def records(count: int = 600, seed: int = 0, split: str | None = None) -> Records:
    """Answers whose log-probabilities and hidden states both lean towards the truth."""
    random = np.random.default_rng(seed)
    splits = ("calibration", "dev", "test")
    return Records(
        {"model": "synthetic", "precision": "exact", "weights_sha256": "ab" * 32},
        tuple(graded(random, i, split or splits[i % 3]) for i in range(count)),
    )


def graded(random: np.random.Generator, i: int, split: str) -> Graded:
    right = bool(random.random() < 0.5)
    level = random.normal(-0.3 if right else -1.0, 0.4, 8)
    logprobs = np.minimum(level, -1e-3)
    tokens = tuple(
        TokenLogprob("", int(t), float(lp), (), float(-2 * lp), float(1 + lp))
        for t, lp in zip(random.integers(0, 99, 8), logprobs, strict=True)
    )
    family = f"family{i % 4}"
    state = random.normal(0, 1, WIDTH) + np.eye(WIDTH)[i % 4] * 3
    answer = state + (0.7 if right else -0.7)
    observed = Observed(
        f"prompt {i}", 20, tokens, "stop", Hidden(state, state, answer), f"answer {i}"
    )
    return Graded(f"{i}", family, 1 + i % 5, f"t{i % 10}", split, observed, right, right)
