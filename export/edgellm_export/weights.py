"""Weights between checkpoint and graph: dense, or blocks of small integers.

Shapes: N output features, K input features, so a linear layer is y (T, N) = x (T, K) @ w.T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
G = TypeVar("G", bound=np.generic)
FLOAT16_MAX = 65504.0
# Weights worked on at once where a whole matrix would need temporaries of its own size.
PIECE_VALUES = 1 << 16


@dataclass(frozen=True, slots=True)
class Dense:
    """Floating-point weights, read from the checkpoint only when `numpy` is called.

    `dtype` is the checkpoint's own: "float32", "float16" or "bfloat16".
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Float32]

    def numpy(self) -> Float32:
        """The values as float32, in `shape`."""
        return self.read()


@dataclass(frozen=True, slots=True)
class Steps:
    """Scales or minima as GGUF's K-quants have them: whole numbers of a coarser float16 scale.

    coarse  float16 (N, S), one for K / S weights
    steps   uint8 or int8 (N, G), one a block; G is a multiple of S
    """

    coarse: NDArray[np.float16]
    steps: NDArray[np.integer]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, G)"""
        return self.steps.shape

    @property
    def nbytes(self) -> int:
        return self.coarse.nbytes + self.steps.nbytes

    def __getitem__(self, rows: NDArray[np.integer] | slice) -> Steps:
        return Steps(self.coarse[rows], self.steps[rows])

    def floats(self) -> Float32:
        """The float32 products (N, G)."""
        apart = self.steps.reshape(*self.coarse.shape, -1).astype(np.float32)
        products: Float32 = apart * self.coarse.astype(np.float32)[..., None]
        return products.reshape(self.steps.shape)


Scales = NDArray[np.floating] | Steps


@dataclass(frozen=True, slots=True)
class Blocks:
    """Integers in blocks along K, in the byte order of ONNX Runtime's MatMulNBits.

    packed  uint8 (N, G, block_size * bits / 8), low bits first, consecutive k; G blocks of a row
    scales  float16, float32 or Steps (N, G)
    zero_points  None: the middle, 2^(bits-1); else uint8 (N, G), not packed
    minima  None, or (N, G): the block is scale * (code - lowest) + minimum (GGUF Q4_1). Never
            together with zero_points.
    lowest  the code that stands for 0 in blocks with minima. 5 bits lie in the middle of 8, as 112
            to 143: kernels see them centred, and the minimum stays as the checkpoint has it.
    width   K where the last block of a row is not full, else 0. What its codes are beyond K means
            nothing: no input is multiplied by them.

    Source: com.microsoft.MatMulNBits in ONNX Runtime's ContribOperators.md.
    """

    bits: int
    block_size: int
    packed: NDArray[np.uint8]
    scales: Scales
    zero_points: NDArray[np.uint8] | None = None
    minima: Scales | None = None
    lowest: int = 0
    width: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        return self.packed.shape[0], self.width or self.packed.shape[1] * self.block_size

    def codes(self) -> NDArray[np.uint8]:
        """The unsigned integers, one a byte: (N, K)."""
        n, k = self.shape
        return unpack(self.packed, self.bits).reshape(n, -1)[:, :k]

    def dequantize(self) -> Float32:
        """The float32 values these blocks stand for: (N, K)."""
        n, k = self.shape
        values = np.empty((n, self.packed.shape[1], self.block_size), np.float32)
        for part in pieces(n, k):
            self.rows(part)._dequantize(values[part])
        return np.ascontiguousarray(values.reshape(n, -1)[:, :k])

    def _dequantize(self, out: Float32) -> None:
        """Into `out` (N, G, block_size), without temporaries of its size."""
        out[...] = unpack(self.packed, self.bits)
        if self.minima is not None:
            out -= np.float32(self.lowest)
        elif self.zero_points is not None:
            out -= self.zero_points.astype(np.float32)[..., None]
        else:
            out -= np.float32(1 << (self.bits - 1))
        out *= floats(self.scales)[..., None]
        if self.minima is not None:
            out += floats(self.minima)[..., None]

    def rows(self, index: NDArray[np.integer] | slice) -> Blocks:
        """The same blocks with output features in the order of `index`."""
        return Blocks(
            self.bits,
            self.block_size,
            self.packed[index],
            self.scales[index],
            None if self.zero_points is None else self.zero_points[index],
            None if self.minima is None else self.minima[index],
            self.lowest,
            self.width,
        )


Weight = Dense | Blocks


def floats(scales: Scales) -> Float32:
    """Scales or minima as float32, however they are kept."""
    return scales.floats() if isinstance(scales, Steps) else scales.astype(np.float32)


def pieces(rows: int, width: int) -> Iterator[slice]:
    """Ranges of rows that together are all, each small enough to stay in a core's cache."""
    step = max(1, PIECE_VALUES // max(width, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def pack(codes: NDArray[np.uint8], bits: int, block_size: int) -> NDArray[np.uint8]:
    """(N, K) integers to (N, G, block_size * bits / 8) bytes, low bits first; zeros fill the last
    block."""
    n = codes.shape[0]
    codes = padded(codes, block_size)
    per_byte = 8 // bits
    grouped = codes.reshape(n, -1, block_size // per_byte, per_byte)
    packed = np.zeros(grouped.shape[:-1], np.uint8)
    for i in range(per_byte):
        packed |= grouped[..., i] << np.uint8(i * bits)
    return packed


def padded(array: NDArray[G], block_size: int) -> NDArray[G]:
    """`array` with zeros after its last axis, up to a multiple of `block_size`."""
    missing = -array.shape[-1] % block_size
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack`, flat in k: (N, blocks, bytes) to (N, blocks, block_size)."""
    if bits == 8:
        return packed
    mask = np.uint8((1 << bits) - 1)
    parts = [(packed >> np.uint8(shift)) & mask for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)


def stack(parts: Sequence[Weight]) -> Weight:
    """Output features of several weights one after another; equal formats stay as they are.

    Mixed formats become float32, whose values are exact.
    """
    blocks = [part for part in parts if isinstance(part, Blocks)]
    if len(blocks) == len(parts) and alike(parts):
        return concatenate(blocks)
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    kinds = {part.dtype if isinstance(part, Dense) else "float32" for part in parts}
    dtype = kinds.pop() if len(kinds) == 1 else "float32"
    return Dense(shape, dtype, lambda: np.concatenate([to_float32(part) for part in parts]))


def alternate(parts: Sequence[Weight]) -> Weight:
    """Output features of equally large weights in turn: the first of each, the second of each, …"""
    whole = stack(parts)
    order = np.arange(whole.shape[0]).reshape(len(parts), -1).T.reshape(-1)
    if isinstance(whole, Blocks):
        return whole.rows(order)
    return Dense(whole.shape, whole.dtype, lambda: whole.numpy()[order])


def concatenate(blocks: Sequence[Blocks]) -> Blocks:
    """Output features of blocks of one format, one after another."""
    first = blocks[0]
    return Blocks(
        first.bits,
        first.block_size,
        np.concatenate([b.packed for b in blocks]),
        _joined([b.scales for b in blocks]),
        _join([b.zero_points for b in blocks]),
        None
        if first.minima is None
        else _joined([b.minima for b in blocks if b.minima is not None]),
        first.lowest,
        first.width,
    )


def alike(parts: Sequence[Weight]) -> bool:
    """Whether all have one format, so that `stack` changes nothing about them."""
    return len({_format(part) for part in parts}) == 1


def _format(w: Weight) -> tuple[object, ...]:
    if isinstance(w, Dense):
        return (w.dtype,)
    minima = None if w.minima is None else _kept_as(w.minima)
    kinds = _kept_as(w.scales), w.zero_points is None, minima
    return w.bits, w.block_size, w.width, *kinds, w.lowest


def _kept_as(scales: Scales) -> object:
    if isinstance(scales, Steps):
        return scales.steps.dtype, scales.steps.shape[1] // scales.coarse.shape[1]
    return scales.dtype


def _joined(parts: Sequence[Scales]) -> Scales:
    """Of one kind, one after another."""
    steps = [part for part in parts if isinstance(part, Steps)]
    if steps:
        coarse, fine = [part.coarse for part in steps], [part.steps for part in steps]
        return Steps(np.concatenate(coarse), np.concatenate(fine))
    return np.concatenate([part for part in parts if not isinstance(part, Steps)])


def _join(parts: Sequence[NDArray[G] | None]) -> NDArray[G] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def to_float32(weight: Weight) -> Float32:
    """The float32 values of either kind."""
    return weight.numpy() if isinstance(weight, Dense) else weight.dequantize()
