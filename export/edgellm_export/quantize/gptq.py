"""GPTQ in numpy: integers that leave the layer's *outputs*, not its weights, nearly as they were.

    weight, H = XᵀX ─▶ grid per block (weighted search) ─▶ GPTQ ─▶ descent, refit, … ─▶ Blocks

The loss is tr((W - Ŵ) H (W - Ŵ)ᵀ), the squared error of the outputs over the calibration text.
Sources: Frantar et al., arXiv:2210.17323 (columns in turn, the error of each carried into those
still to come by the Cholesky factor of H⁻¹; grids fixed beforehand: "static groups"); coordinate
descent afterwards as in Behdin et al., arXiv:2309.01885 (QuantEase).
Shapes: N output features, K inputs, G blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgellm_export.quantize.grids import Grid, rounded, search
from edgellm_export.quantize.rtn import half
from edgellm_export.recipe import Integer
from edgellm_export.weights import Blocks, Float32, padded

Float64 = NDArray[np.float64]
# Columns whose errors are carried on among themselves first, then to all others in one product.
LAZY_COLUMNS = 64
# Rows at once: bounds the temporaries whatever the matrix (an lm_head has 50,000 to 250,000).
CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Effort:
    """`damping` is added to H, as a fraction of its mean diagonal; `sweeps` of descent and refit
    follow GPTQ; `by_importance` takes the columns in falling order of H's diagonal."""

    damping: float = 0.01
    sweeps: int = 2
    by_importance: bool = True


def quantize(
    weight: Float32, hessian: Float32 | None, scheme: Integer, effort: Effort | None = None
) -> Blocks:
    """`weight` (N, K) in blocks such that its products with the calibration inputs change least.

    `hessian` (K, K) is the sum of x xᵀ over those inputs; its scale does not matter; None when
    nothing is known of them.
    """
    effort = effort or Effort()
    if hessian is None:
        grid = search(weight, np.ones(weight.shape[1], np.float32), scheme)
        return grid.blocks(rounded(weight, grid))
    inputs = prepare(hessian, effort)
    parts = [
        solve(weight[start : start + CHUNK_ROWS], scheme, inputs)
        for start in range(0, len(weight), CHUNK_ROWS)
    ]
    scale = np.concatenate([grid.scale for grid, _ in parts])
    offset = np.concatenate([grid.offset for grid, _ in parts])
    grid = Grid(scheme, scale, offset, weight.shape[1])
    return grid.blocks(np.concatenate([codes for _, codes in parts]))


def loss(weight: Float32, quantized: Float32, hessian: Float32) -> float:
    """tr((W - Ŵ) H (W - Ŵ)ᵀ)"""
    error = weight - quantized
    return float(np.einsum("nk,nk->", error @ hessian, error, dtype=np.float64))


def damp(hessian: Float32, damping: float) -> Float64:
    """H with a mean diagonal of 1 and `damping` on it; inputs that were always 0 get 1."""
    h = hessian.astype(np.float64)
    mean = float(np.diag(h).mean())
    h /= mean if mean > 0 else 1.0
    diagonal = np.diag(h).copy()
    np.fill_diagonal(h, np.where(diagonal <= 0, 1.0, diagonal) + damping)
    return h


def inverse_factor(damped: Float64, order: NDArray[np.intp] | None) -> Float32:
    """Upper triangular U with UᵀU = H⁻¹, columns in `order`."""
    h = damped if order is None else damped[np.ix_(order, order)]
    # Of the reversed matrix, L Lᵀ = H gives U without inverting H itself: U = (L⁻ᵀ reversed).
    lower = np.linalg.cholesky(h[::-1, ::-1])
    inverse = np.linalg.inv(lower)
    return np.ascontiguousarray(inverse[::-1, ::-1]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all rows and schemes of a matrix share: H damped, its factor for columns in `order`."""

    h: Float32
    factor: Float32
    order: NDArray[np.intp] | None
    sweeps: int


def prepare(hessian: Float32, effort: Effort) -> Inputs:
    """The inputs whose statistics are `hessian` (K, K)."""
    damped = damp(hessian, effort.damping)
    order = np.argsort(-np.diag(damped), kind="stable") if effort.by_importance else None
    factor = inverse_factor(damped, order)
    return Inputs(damped.astype(np.float32), factor, order, effort.sweeps)


def solve(weight: Float32, scheme: Integer, inputs: Inputs) -> tuple[Grid, Float32]:
    """Grid and integers (N, K) of some rows."""
    grid = search(weight, np.diag(inputs.h), scheme)
    codes = carry_errors(weight, grid, inputs.factor, inputs.order)
    for _ in range(inputs.sweeps):
        grid = refit(weight, codes, grid, inputs.h)
        codes = descend(weight, codes, grid, inputs.h)
    return grid, codes


def carry_errors(
    weight: Float32, grid: Grid, factor: Float32, order: NDArray[np.intp] | None
) -> Float32:
    """Integers (N, K): each column is rounded, its error spread over those still to come."""
    n, k = weight.shape
    columns = np.arange(k) if order is None else order
    # One column a row: what the loop reads and writes lies together.
    left = np.ascontiguousarray(weight.T[columns])
    scale = np.ascontiguousarray(grid.scale.T)
    offset = np.ascontiguousarray(grid.offset.T)
    codes = np.empty((k, n), np.float32)
    group = columns // grid.scheme.block_size
    for start in range(0, k, LAZY_COLUMNS):
        stop = min(start + LAZY_COLUMNS, k)
        errors = np.empty((stop - start, n), np.float32)
        for i in range(start, stop):
            s, o = scale[group[i]], offset[group[i]]
            q = np.clip(np.rint((left[i] - o) / s), 0, grid.top)
            codes[columns[i]] = q
            error = (left[i] - (q * s + o)) / factor[i, i]
            errors[i - start] = error
            left[i + 1 : stop] -= np.outer(factor[i, i + 1 : stop], error)
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return np.ascontiguousarray(codes.T)


def descend(weight: Float32, codes: Float32, grid: Grid, h: Float32) -> Float32:
    """Integers after one sweep in which each column takes its best value, all others given."""
    n, k = weight.shape
    scale = np.ascontiguousarray(grid.scale.T)
    offset = np.ascontiguousarray(grid.offset.T)
    codes = np.ascontiguousarray(codes.T)
    wide = np.arange(k) // grid.scheme.block_size
    error = weight.T - (codes * scale[wide] + offset[wide])
    slope = h @ error
    for start in range(0, k, LAZY_COLUMNS):
        stop = min(start + LAZY_COLUMNS, k)
        changes = np.empty((stop - start, n), np.float32)
        for i in range(start, stop):
            s, o = scale[wide[i]], offset[wide[i]]
            now = codes[i] * s + o
            q = np.clip(np.rint((now + slope[i] / h[i, i] - o) / s), 0, grid.top)
            change = (q - codes[i]) * s
            codes[i] = q
            changes[i - start] = change
            slope[i:stop] -= np.outer(h[i:stop, i], change)
        slope[:start] -= h[:start, start:stop] @ changes
        slope[stop:] -= h[stop:, start:stop] @ changes
    return np.ascontiguousarray(codes.T)


def refit(weight: Float32, codes: Float32, grid: Grid, h: Float32) -> Grid:
    """Scales (and minima, where free) with the least loss for integers held fixed, in float16.

    Each row is one small least-squares problem over all its blocks at once; where the last is not
    full, inputs that are always zero fill it.
    """
    n, groups = grid.scale.shape
    size = grid.scheme.block_size
    rest = -len(h) % size
    centred = codes if grid.scheme.minima else codes - grid.wide(grid.zeros())
    target = padded(weight @ h, size).reshape(n, groups, size)
    h = np.pad(h, (0, rest)) if rest else h
    basis = [padded(centred, size).reshape(n, groups, size)]
    if grid.scheme.minima:
        basis.append(np.ones((n, groups, size), np.float32))
    unknowns = groups * len(basis)
    left = np.empty((n, unknowns, unknowns), np.float64)
    tiles = h.reshape(groups, size, groups, size)
    right = np.concatenate([np.einsum("ngb,ngb->ng", part, target) for part in basis], axis=1)
    for a, part in enumerate(basis):
        for g in range(groups):
            through = (part[:, g] @ tiles[g].reshape(size, -1)).reshape(n, groups, size)
            for b, other in enumerate(basis):
                left[:, a * groups + g, b * groups : (b + 1) * groups] = np.einsum(
                    "ngb,ngb->ng", through, other
                )
    before = [grid.scale] + ([grid.offset] if grid.scheme.minima else [])
    start = np.concatenate(before, axis=1).astype(np.float64)
    found = _solve(left, right.astype(np.float64), start)
    scale = half(found[:, :groups].astype(np.float32))
    if grid.scheme.minima:
        return replace(grid, scale=scale, offset=half(found[:, groups:].astype(np.float32)))
    return replace(grid, scale=scale, offset=-scale * grid.zeros())


def _solve(left: Float64, right: Float64, start: Float64) -> Float64:
    """Least squares with a slight pull towards `start`, which settles blocks that are all zero."""
    diagonal = np.einsum("nii->ni", left)
    pull = 1e-4 * np.maximum(diagonal.mean(axis=1, keepdims=True), 1e-12) * np.ones_like(diagonal)
    diagonal += pull
    return np.linalg.solve(left, (right + pull * start)[..., None])[..., 0]
