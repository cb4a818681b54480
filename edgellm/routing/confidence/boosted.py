"""Gradient-boosted trees for log-odds: small, histogram-based, in numpy.

Friedman 2001 (Greedy function approximation), with the second-order leaf values and gains of
XGBoost (Chen and Guestrin, arXiv:1603.02754, equations 6 and 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.routing.confidence.logistic import sigmoid

Float64 = NDArray[np.float64]
# A split that gains less is noise of rounding.
LEAST_GAIN = 1e-6


@dataclass(frozen=True, slots=True)
class Settings:
    """Small trees, slowly: about 1,000 graded answers teach no more."""

    trees: int = 120
    depth: int = 3
    rate: float = 0.06
    bins: int = 24
    ridge: float = 8.0
    smallest_leaf: int = 20
    share_features: float = 0.5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Boosted:
    """Complete binary trees as arrays: the feature and threshold (trees, 2**depth - 1) of each
    inner node, the value (trees, 2**depth) of each leaf. A feature >= the threshold goes right."""

    features: NDArray[np.int32]
    thresholds: Float64
    leaves: Float64
    bias: float

    def __call__(self, features: Float64) -> Float64:
        """Log-odds (N,) of features (N, F). All trees go down one level at a time: for one row,
        which is what a router asks, a loop over the trees would take milliseconds."""
        inner = self.features.shape[1]
        rows, trees = np.arange(len(features))[:, None], np.arange(len(self.features))
        node = np.zeros((len(features), len(trees)), np.int64)
        for _ in range(inner.bit_length()):  # a complete tree has 2**depth - 1 inner nodes
            right = features[rows, self.features[trees, node]] >= self.thresholds[trees, node]
            node = 2 * node + 1 + right
        odds: Float64 = self.bias + self.leaves[trees, node - inner].sum(axis=1)
        return odds


def fit(features: Float64, correct: NDArray[np.bool_], settings: Settings | None = None) -> Boosted:
    """Trees fitted one after another to what the sum so far gets wrong. Deterministic."""
    settings = settings or Settings()
    random = np.random.default_rng(settings.seed)
    target = correct.astype(np.float64)
    share = float(np.clip(target.mean(), 1e-3, 1 - 1e-3))
    bias = float(np.log(share / (1 - share)))
    edges = [_edges(column, settings.bins) for column in features.T]
    binned = np.column_stack(
        [
            np.searchsorted(e, column, side="right")
            for e, column in zip(edges, features.T, strict=True)
        ]
    )
    odds = np.full(len(target), bias)
    trees = []
    for _ in range(settings.trees):
        p = sigmoid(odds)
        count = max(1, round(settings.share_features * features.shape[1]))
        allowed = np.sort(random.choice(features.shape[1], count, replace=False))
        tree, leaf = _grow(binned, p - target, p * (1 - p), allowed, settings)
        odds += tree[2][leaf]
        trees.append(tree)
    chosen = np.array([tree[0] for tree in trees], np.int32)
    at = np.array([tree[1] for tree in trees])
    thresholds = np.full(at.shape, np.inf)
    for place, (feature, cut) in enumerate(zip(chosen.flat, at.flat, strict=True)):
        if cut > 0:
            thresholds.flat[place] = edges[feature][cut - 1]
    return Boosted(chosen, thresholds, np.array([tree[2] for tree in trees]), bias)


def _edges(column: Float64, bins: int) -> Float64:
    """Distinct quantiles: a value in bin b is >= edge b - 1."""
    return np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))


def _grow(
    binned: NDArray[np.int64],
    slope: Float64,
    curve: Float64,
    allowed: NDArray[np.int64],
    settings: Settings,
) -> tuple[tuple[NDArray[np.int32], NDArray[np.int64], Float64], NDArray[np.int64]]:
    """(feature, bin, leaf value) of one tree, and the leaf (N,) of each row.

    An inner node that is not split has bin 0: no row goes right (its threshold is infinite).
    """
    inner = 2**settings.depth - 1
    feature, cut = np.zeros(inner, np.int32), np.zeros(inner, np.int64)
    node = np.zeros(len(binned), np.int64)
    for at in range(inner):
        rows = np.flatnonzero(node == at)
        split = _split(binned[rows], slope[rows], curve[rows], allowed, settings)
        right: NDArray[np.bool_] | bool = False
        if split is not None:
            feature[at], cut[at] = split
            right = binned[rows, split[0]] >= split[1]
        node[rows] = 2 * at + 1 + right
    leaf = node - inner
    slopes = np.bincount(leaf, slope, inner + 1)
    curves = np.bincount(leaf, curve, inner + 1)
    return (feature, cut, -settings.rate * slopes / (curves + settings.ridge)), leaf


def _split(
    binned: NDArray[np.int64],
    slope: Float64,
    curve: Float64,
    allowed: NDArray[np.int64],
    settings: Settings,
) -> tuple[int, int] | None:
    """The feature and bin of most gain, None when none is worth it."""
    count, least = len(binned), settings.smallest_leaf
    if count < 2 * least:
        return None
    bins = settings.bins
    place = (binned[:, allowed] + bins * np.arange(len(allowed))).ravel()

    def left(weights: Float64) -> Float64:
        """(features, cuts): the sum over rows below each cut."""
        sums = np.bincount(place, np.repeat(weights, len(allowed)), bins * len(allowed))
        return np.cumsum(sums.reshape(-1, bins), axis=1, dtype=np.float64)[:, :-1]

    slopes, curves, counts = left(slope), left(curve), left(np.ones(count))
    all_slope, all_curve = slope.sum(), curve.sum()
    gain = (
        slopes**2 / (curves + settings.ridge)
        + (all_slope - slopes) ** 2 / (all_curve - curves + settings.ridge)
        - all_slope**2 / (all_curve + settings.ridge)
    )
    gain[(counts < least) | (count - counts < least)] = -np.inf
    at, cut = divmod(int(gain.argmax()), bins - 1)
    return (int(allowed[at]), cut + 1) if gain[at, cut] > LEAST_GAIN else None
