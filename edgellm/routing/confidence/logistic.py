"""Logistic regression with a ridge penalty, fitted by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
STEPS = 50
# A step that moves no weight by more than this ends the search.
SETTLED = 1e-8


@dataclass(frozen=True, slots=True)
class Logistic:
    """log-odds = (features - mean) / scale · weights + bias"""

    mean: Float64
    scale: Float64
    weights: Float64
    bias: float

    def __call__(self, features: Float64) -> Float64:
        """Log-odds (N,) of features (N, F)."""
        odds: Float64 = (features - self.mean) / self.scale @ self.weights + self.bias
        return odds


def fit(features: Float64, correct: NDArray[np.bool_], ridge: float = 1.0) -> Logistic:
    """The weights of least penalised log-loss; `ridge` multiplies the squared weights.

    Features are standardised first, constant ones left at zero.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    rows = np.column_stack([(features - mean) / scale, np.ones(len(features))])
    target = correct.astype(np.float64)
    penalty = np.full(rows.shape[1], ridge)
    penalty[-1] = 1e-9  # the bias is free; this keeps the system solvable
    weights = np.zeros(rows.shape[1])
    for _ in range(STEPS):
        p = sigmoid(rows @ weights)
        slope = rows.T @ (p - target) + penalty * weights
        curve = (rows * (p * (1 - p))[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        # Newton from zero overshoots only when classes separate; a bounded step stays stable.
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        weights -= step
        if float(np.abs(step).max()) < SETTLED:
            break
    return Logistic(mean, scale, weights[:-1], float(weights[-1]))


def sigmoid(x: Float64) -> Float64:
    """1 / (1 + e^-x), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))
