"""Mixed precision under a budget: which matrix deserves which bits and blocks.

For each matrix a few schemes are tried on some of its rows as they will be rounded, which gives the
error of the matrix's outputs on the calibration text. What such an error costs the model is
measured (sensitivity): the KL of its logits when this matrix alone is rounded. KL grows with the
square of a small error, so the one measurement gives the KL of every scheme, and the KLs of
different matrices are added (Malinovskii et al., arXiv:2411.17525, find perplexity to be about
linear in squared errors). Then bytes are spent where one byte removes most KL: along each matrix's
lower convex hull in falling order of slope, which is the Lagrangian optimum up to one step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from edgellm.errors import Incompatible, UsageError
from edgellm_export.data import ALIGNMENT_BYTES
from edgellm_export.quantize import gptq, suits
from edgellm_export.quantize.grids import rounded, search
from edgellm_export.quantize.sensitivity import trial_error
from edgellm_export.recipe import Integer, Keep, Treatment
from edgellm_export.weights import Float32

# Rows that stand for all of a matrix: their mean loss is within a few per cent of it.
SAMPLE_ROWS = 128
CANDIDATES = (
    Integer(4, 128, True, method="gptq"),
    Integer(4, 64, True, method="gptq"),
    Integer(4, 32, True, method="gptq"),
    Integer(4, 16, True, method="gptq"),
    Integer(8, 64, False, method="gptq"),
    Integer(8, 32, False, method="gptq"),
    Integer(8, 16, False, method="gptq"),
)
# Blocks with a float16 minimum decode slower, so they are a candidate only where they give back the
# very weights: those of a checkpoint that was in such blocks (GGUF's Q4_1) before it was floats.
RECOVERED = Integer(4, 32, False, minima=True)
RECOVERED_LIMIT = 1e-6  # of the outputs' power; float16 scales leave 1e-7, rounding 1e-3
BYTES_PER_MB = 1e6


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to store a matrix: what it takes and what it costs, a KL in nats a token."""

    scheme: Treatment
    bytes: int
    loss: float


def choices(
    weight: Float32, hessian: Float32 | None, schemes: Iterable[Integer], trial_kl: float
) -> tuple[Choice, ...]:
    """Bytes and loss of `weight` (N, K) under each scheme; K must suit it (`suits`). RECOVERED is
    among them only where it gives the weights back.

    `trial_kl` is what rounding the matrix by `sensitivity.trial_error` costs.
    """
    rows = np.linspace(0, len(weight) - 1, min(SAMPLE_ROWS, len(weight))).astype(int)
    sample = weight[rows]
    h = np.eye(weight.shape[1], dtype=np.float32) if hessian is None else hessian
    power = max(gptq.loss(sample, np.zeros_like(sample), h), 1e-30)
    trial = max(gptq.loss(sample, sample + trial_error(sample), h), 1e-30)
    inputs = None if hessian is None else gptq.prepare(hessian, gptq.Effort())
    found = []
    for scheme in schemes:
        if inputs is None or scheme.method == "rtn" or scheme.bits == 8:  # then small either way
            grid = search(sample, np.diag(h), scheme)
            codes = rounded(sample, grid)
        else:
            grid, codes = gptq.solve(sample, scheme, inputs)
        error = gptq.loss(sample, grid.dequantize(codes), h)
        if scheme == RECOVERED and error > RECOVERED_LIMIT * power:
            continue
        kl = trial_kl * error / trial
        found.append(Choice(scheme, stored_bytes(weight.shape, scheme), kl))
    return tuple(found)


def joined(hessian: Float32, weight: Float32, trial_kl: float, lookup_kl: float) -> Float32:
    """H of a tied embedding with its lookups: a loss by it counts errors of products and of rows
    that are taken as they cost. `trial_kl` is what the trial costs in both, `lookup_kl` in rows.
    """
    error = trial_error(weight[:: max(1, len(weight) // SAMPLE_ROWS)])
    products = gptq.loss(error, np.zeros_like(error), hessian)
    rows = float(np.square(error, dtype=np.float64).sum())
    # Noise may make the whole smaller than its part.
    product_kl = max(trial_kl - lookup_kl, 0.01 * trial_kl, 1e-12)
    more = lookup_kl / product_kl * products / max(rows, 1e-30)
    return hessian + np.float32(more) * np.eye(len(hessian), dtype=np.float32)


def stored_bytes(shape: tuple[int, int], scheme: Integer) -> int:
    """Bytes in the data file, alignment included."""
    out, inner = shape
    blocks, rest = -(-inner // scheme.block_size), inner % scheme.block_size
    codes = [out * part * scheme.bits // 8 for part in (inner - rest, rest)]
    arrays = [*codes, 2 * out * blocks]
    if scheme.asymmetric:
        arrays.append(out * -(-blocks * scheme.bits // 8))
    if scheme.minima:
        arrays.append(2 * out * blocks)
    return sum(size + -size % ALIGNMENT_BYTES for size in arrays)


def spend(table: Mapping[str, Sequence[Choice]], limit_bytes: int) -> dict[str, Choice]:
    """One choice for each matrix, at most `limit_bytes` together, with the least sum of losses.

    UsageError says the least that all of them take.
    """
    hulls = {name: _hull(options) for name, options in table.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    used = sum(choice.bytes for choice in chosen.values())
    if used > limit_bytes:
        raise UsageError(
            f"the matrices take {used / BYTES_PER_MB:.1f} MB at the least and the target leaves "
            f"{limit_bytes / BYTES_PER_MB:.1f} MB for them; raise --target-mb"
        )
    steps = [
        ((a.loss - b.loss) / (b.bytes - a.bytes), name, b)
        for name, hull in hulls.items()
        for a, b in pairwise(hull)
    ]
    stopped: set[str] = set()
    for _, name, step in sorted(steps, key=lambda s: (-s[0], s[1])):
        more = step.bytes - chosen[name].bytes
        if name in stopped or used + more > limit_bytes:
            stopped.add(name)  # a later step of this matrix builds on this one
            continue
        chosen[name] = step
        used += more
    return chosen


@dataclass(frozen=True, slots=True)
class Material:
    """What is known of the matrices: shapes, weights, statistics and what the trial cost by name,
    for those that the checkpoint has in blocks already the bytes these take (keeping them costs no
    quality), and `tables`, which blocks must fill."""

    shapes: Mapping[str, tuple[int, int]]
    weight: Callable[[str], Float32]
    statistics: Callable[[str], Float32 | None]
    trial_kl: Mapping[str, float]
    kept_bytes: Mapping[str, int] = field(default_factory=dict)
    tables: Collection[str] = ()


def plan(material: Material, limit_bytes: int, recover: bool = True) -> dict[str, Treatment]:
    """What becomes of each matrix, within `limit_bytes` together; `recover` looks for the blocks
    that floats once were."""
    candidates = (*CANDIDATES, RECOVERED) if recover else CANDIDATES
    table = {}
    for name, shape in material.shapes.items():
        tails = name not in material.tables
        schemes = [scheme for scheme in candidates if suits(scheme, shape[1], tails)]
        if not schemes:
            raise Incompatible(
                f"{name}: its width {shape[1]} is no multiple of 16, the smallest block; "
                "use --precision fp16"
            )
        hessian, trial_kl = material.statistics(name), material.trial_kl[name]
        found = choices(material.weight(name), hessian, schemes, trial_kl)
        if name in material.kept_bytes:
            found = (*found, Choice(Keep(), material.kept_bytes[name], 0.0))
        table[name] = found
    return {name: choice.scheme for name, choice in spend(table, limit_bytes).items()}


def _hull(options: Sequence[Choice]) -> list[Choice]:
    """The choices worth taking, by rising bytes: loss falls, and ever more slowly."""
    hull: list[Choice] = []
    for option in sorted(options, key=lambda c: (c.bytes, c.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: Choice, b: Choice) -> float:
    """Loss removed by each byte."""
    return (a.loss - b.loss) / (b.bytes - a.bytes)
