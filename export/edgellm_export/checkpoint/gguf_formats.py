"""Block types of GGUF that MatMulNBits can hold exactly: integers bit for bit, no rounding.

Bits a weight, in the GGUF file and stored here:

    type    GGUF    here    as                                   w =
    Q4_0    4.5     4.5     4 bits, blocks of 32                 d * (q - 8)
    Q4_1    5.0     5.0     4 bits, blocks of 32, minima         d * q + m
    Q5_0    5.5     8.5     8 bits, blocks of 32                 d * (q - 16)
    Q5_1    6.0     9.0     8 bits, blocks of 32, minima         d * q + m
    Q8_0    8.5     8.5     8 bits, blocks of 32                 d * q
    Q2_K    2.6     5.1     4 bits, blocks of 16, minima *       (d * sc) * q - dmin * m
    Q3_K    3.4     4.6     4 bits, blocks of 16 *               (d * sc) * (q - 4)
    Q4_K    4.5     4.6     4 bits, blocks of 32, minima *       (d * sc) * q - dmin * m
    Q5_K    5.5     8.6     8 bits, blocks of 32, minima *       (d * sc) * q - dmin * m
    Q6_K    6.6     8.6     8 bits, blocks of 16 *               (d * sc) * (q - 32)
    IQ4_NL  4.5     8.5     8 bits, blocks of 32                 d * table[q]
    IQ4_XS  4.25    8.3     8 bits, blocks of 32 *               (d * sc) * table[q]
    MXFP4   4.25    9.0     8 bits, blocks of 32 **              2^e * table[q]
    TQ1_0   1.7     4.1     4 bits, blocks of 256                d * (q - 1)
    TQ2_0   2.1     4.1     4 bits, blocks of 256                d * (q - 1)

*  Scales (and minima) are weights.Steps: d as it is, sc in a byte; as one number, d * sc would need
   float32.
** Scales are float32: 2^e has 8 bits of exponent.

Codes that use less than their 4 or 8 bits lie in the middle of the range, at the default zero
point. With minima that costs no exactness: `Blocks.lowest` says where they begin.
Source: the block_ structs of ggml-common.h and dequantize_row_ functions of ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm_export.weights import Blocks, Steps, pack

Bytes = NDArray[np.uint8]
# kvalues_iq4nl and kvalues_mxfp4 (e2m1, doubled) of ggml-common.h.
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


@dataclass(frozen=True, slots=True)
class Format:
    """A block type: `unpack` takes bytes (N, K / weights, size) of `weights` numbers each."""

    weights: int
    unpack: Callable[[Bytes], Blocks]


def _q4_0(raw: Bytes) -> Blocks:
    return Blocks(4, 32, _neighbours(raw[..., 2:]), _halves(raw[..., :2]))


def _q4_1(raw: Bytes) -> Blocks:
    packed = _neighbours(raw[..., 4:])
    return Blocks(4, 32, packed, _halves(raw[..., :2]), minima=_halves(raw[..., 2:4]))


def _q5_0(raw: Bytes) -> Blocks:
    codes = _fifth_bit(raw[..., 2:6], _nibbles(raw[..., 6:], 16)) + np.uint8(128 - 16)
    return Blocks(8, 32, codes, _halves(raw[..., :2]))


def _q5_1(raw: Bytes) -> Blocks:
    lowest = 128 - 16
    codes = _fifth_bit(raw[..., 4:8], _nibbles(raw[..., 8:], 16)) + np.uint8(lowest)
    scales, minima = _halves(raw[..., :2]), _halves(raw[..., 2:4])
    return Blocks(8, 32, codes, scales, minima=minima, lowest=lowest)


def _q8_0(raw: Bytes) -> Blocks:
    # Adding 128 to a signed byte is flipping its top bit; 128 is the middle that Blocks assumes.
    return Blocks(8, 32, raw[..., 2:] ^ np.uint8(0x80), _halves(raw[..., :2]))


def _q2_k(raw: Bytes) -> Blocks:
    steps, lowest = raw[..., :16], 8 - 2
    scales = _steps(_halves(raw[..., 80:82]), steps & np.uint8(15))
    minima = _steps(-_halves(raw[..., 82:84]), steps >> np.uint8(4))
    codes = _bits(raw[..., 16:80], 2, 32) + np.uint8(lowest)
    return _blocks(4, 16, codes, scales, minima, lowest)


def _q3_k(raw: Bytes) -> Blocks:
    high = _bits(raw[..., :32], 1, 32)  # clear: 4 less
    steps = raw[..., 96:108]
    low = _bits(steps[..., :8], 4, 8) | (_bits(steps[..., 8:], 2, 4) << np.uint8(4))
    scales = _steps(_halves(raw[..., 108:110]), low.astype(np.int8) - np.int8(32))
    codes = _bits(raw[..., 32:96], 2, 32) + (high << np.uint8(2)) + np.uint8(8 - 4)
    return _blocks(4, 16, codes, scales)


def _q4_k(raw: Bytes) -> Blocks:
    return _blocks(4, 32, _bits(raw[..., 16:], 4, 32), *_scales_and_minima(raw))


def _q5_k(raw: Bytes) -> Blocks:
    lowest = 128 - 16
    codes = _bits(raw[..., 48:], 4, 32) | (_bits(raw[..., 16:48], 1, 32) << np.uint8(4))
    return _blocks(8, 32, codes + np.uint8(lowest), *_scales_and_minima(raw), lowest)


def _q6_k(raw: Bytes) -> Blocks:
    codes = _bits(raw[..., :128], 4, 64) | (_bits(raw[..., 128:192], 2, 32) << np.uint8(4))
    steps = np.ascontiguousarray(raw[..., 192:208]).view(np.int8)
    return _blocks(8, 16, codes + np.uint8(128 - 32), _steps(_halves(raw[..., 208:210]), steps))


def _iq4_nl(raw: Bytes) -> Blocks:
    return Blocks(8, 32, _looked_up(IQ4, _nibbles(raw[..., 2:], 16)), _halves(raw[..., :2]))


def _iq4_xs(raw: Bytes) -> Blocks:
    high = _bits_in_turn(raw[..., 2:4], 2)
    steps = _bits_in_turn(raw[..., 4:8], 4) | (high << np.uint8(4))
    scales = _steps(_halves(raw[..., :2]), steps.astype(np.int8) - np.int8(32))
    return _blocks(8, 32, _looked_up(IQ4, _nibbles(raw[..., 8:], 16)), scales)


def _mxfp4(raw: Bytes) -> Blocks:
    # The table is doubled, so the scale is half of 2^(e - 127).
    scales = np.ldexp(np.float32(1), raw[..., 0].astype(np.int32) - 128)
    return Blocks(8, 32, _looked_up(E2M1, _nibbles(raw[..., 1:], 16)), scales)


def _tq1_0(raw: Bytes) -> Blocks:
    """Five digits of base 3 in a byte; the next one is what a product of 8 bits spills over."""

    def digits(part: Bytes, count: int) -> Bytes:
        powers = np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
        spilled = (part[..., None, :] * powers).astype(np.uint16) * np.uint16(3)
        return (spilled >> np.uint16(8)).astype(np.uint8).reshape(*part.shape[:-1], -1)

    parts = [digits(raw[..., :32], 5), digits(raw[..., 32:48], 5), digits(raw[..., 48:52], 4)]
    return _ternary(np.concatenate(parts, axis=-1), raw[..., 52:54])


def _tq2_0(raw: Bytes) -> Blocks:
    return _ternary(_bits(raw[..., :64], 2, 32), raw[..., 64:66])


def _ternary(codes: Bytes, scales: Bytes) -> Blocks:
    codes = (codes + np.uint8(8 - 1)).reshape(codes.shape[0], -1)
    return Blocks(4, 256, pack(codes, 4, 256), _halves(scales))


FORMATS = {
    "Q4_0": Format(32, _q4_0),
    "Q4_1": Format(32, _q4_1),
    "Q5_0": Format(32, _q5_0),
    "Q5_1": Format(32, _q5_1),
    "Q8_0": Format(32, _q8_0),
    "Q2_K": Format(256, _q2_k),
    "Q3_K": Format(256, _q3_k),
    "Q4_K": Format(256, _q4_k),
    "Q5_K": Format(256, _q5_k),
    "Q6_K": Format(256, _q6_k),
    "IQ4_NL": Format(32, _iq4_nl),
    "IQ4_XS": Format(256, _iq4_xs),
    "MXFP4": Format(32, _mxfp4),
    "TQ1_0": Format(256, _tq1_0),
    "TQ2_0": Format(256, _tq2_0),
}


def _blocks(
    bits: int,
    block_size: int,
    codes: Bytes,
    scales: Steps,
    minima: Steps | None = None,
    lowest: int = 0,
) -> Blocks:
    """Codes (N, super-blocks, …) flattened along K."""
    n = codes.shape[0]
    packed = pack(codes.reshape(n, -1), bits, block_size)
    return Blocks(bits, block_size, packed, scales, minima=minima, lowest=lowest)


def _scales_and_minima(raw: Bytes) -> tuple[Steps, Steps]:
    """Of Q4_K and Q5_K: eight of 6 bits each, the upper two of the last four kept apart."""
    first, second, rest = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    low, high = np.uint8(0x3F), np.uint8(0x30)
    scales = [first & low, (rest & np.uint8(15)) | ((first >> np.uint8(2)) & high)]
    minima = [second & low, (rest >> np.uint8(4)) | ((second >> np.uint8(2)) & high)]
    return (
        _steps(_halves(raw[..., :2]), np.concatenate(scales, axis=-1)),
        _steps(-_halves(raw[..., 2:4]), np.concatenate(minima, axis=-1)),
    )


def _steps(coarse: NDArray[np.float16], steps: Bytes | NDArray[np.int8]) -> Steps:
    """Coarse scales (N, super-blocks) and their multiples (N, super-blocks, …)."""
    return Steps(coarse, steps.reshape(len(coarse), -1))


def _halves(raw: Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float16, copy=False)


def _bits(raw: Bytes, bits: int, run: int) -> Bytes:
    """Integers of `bits`, flat: for each `run` of bytes all their lowest bits, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = raw.reshape(*raw.shape[:-1], -1, 1, run) >> shifts
    return (parts & np.uint8((1 << bits) - 1)).reshape(*raw.shape[:-1], -1)


def _bits_in_turn(raw: Bytes, bits: int) -> Bytes:
    """Integers of `bits`, byte by byte, low bits first."""
    return _bits(raw, bits, 1)


def _nibbles(raw: Bytes, run: int) -> Bytes:
    return _bits(raw, 4, run)


def _fifth_bit(raw: Bytes, nibbles: Bytes) -> Bytes:
    return nibbles | (_bits_in_turn(raw, 1) << np.uint8(4))


def _looked_up(table: NDArray[np.int8], codes: Bytes) -> Bytes:
    """The signed integers of `codes`, moved to the middle of 8 bits; 32 to a block."""
    return (table.view(np.uint8) ^ np.uint8(0x80))[codes].reshape(codes.shape[0], -1, 32)


def _neighbours(halves: Bytes) -> Bytes:
    """Bytes (i, i + 16) to bytes (2j, 2j + 1), the order of `weights.pack`."""
    even, odd = halves[..., 0::2], halves[..., 1::2]
    packed = np.empty_like(halves, order="C")
    packed[..., :8] = (even & np.uint8(0x0F)) | (odd << np.uint8(4))
    packed[..., 8:] = (even >> np.uint8(4)) | (odd & np.uint8(0xF0))
    return packed
