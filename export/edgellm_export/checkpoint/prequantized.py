"""GPTQ and AWQ layers in safetensors as Blocks: their own integers, scales and zero points.

    GPTQ  qweight  int32 (K / per, N)  neighbours along K, low bits first
          qzeros   int32 (G, N / per)  neighbours along N; 1 less than the zero point, but not in
                                       checkpoint_format gptq_v2
          scales   float (G, N)
          g_idx    int32 (K,)          the group of each input
    AWQ   qweight  int32 (K, N / 8)    eight along N: the nibble at 4 i holds output ORDER[i]
          qzeros   int32 (G, N / 8)    the same
          scales   float (G, N)

G groups of K / G inputs, per = 32 / bits, w = (q - zero) * scale.
Sources: QuantLinear of AutoGPTQ (qlinear_cuda_old.py, zero points wrap around at 2^bits), WQLinear
GEMM of AutoAWQ (utils/packing_utils.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.mapped import AGAIN, all_finite, shown, widen_bfloat16
from edgellm_export.checkpoint.safetensors_file import SafetensorsFile
from edgellm_export.weights import Blocks, pack

Bytes = NDArray[np.uint8]
PARTS = ("qweight", "qzeros", "scales", "g_idx")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# MatMulNBits takes powers of two from 16 on; 256 is the largest that its kernels are tuned for.
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
USE = "use the original float weights or a GGUF file"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How all quantized layers of a checkpoint are packed. `stored_less`: see qzeros of GPTQ."""

    method: str
    bits: int
    stored_less: int

    @property
    def per_word(self) -> int:
        return 32 // self.bits


def scheme(settings: Any, where: str) -> Scheme:
    """The packing that a `quantization_config` names; Incompatible if it is no known one."""
    if not isinstance(settings, Mapping):
        raise Corrupt(f"{where}: quantization_config must be a mapping; {AGAIN}")
    method = settings.get("quant_method")
    bits = settings.get("bits", settings.get("w_bit"))
    if method not in ("gptq", "awq"):
        raise Incompatible(
            f"{where}: quantization_config has the method {shown(method)}, and of quantized "
            f"safetensors only gptq and awq can be read; {USE}"
        )
    if bits not in ((4, 8) if method == "gptq" else (4,)):
        raise Incompatible(f"{where}: {method} with {shown(bits)} bits cannot be read; {USE}")
    layout = settings.get("checkpoint_format" if method == "gptq" else "version")
    known = ("gptq", "gptq_v2") if method == "gptq" else ("gemm",)
    name = known[0] if layout is None else str(layout).lower()
    if name not in known:
        raise Incompatible(f"{where}: the {method} layout {shown(layout)} cannot be read; {USE}")
    if settings.get("dynamic"):
        raise Incompatible(f"{where}: gptq with settings by layer (dynamic) cannot be read; {USE}")
    return Scheme(method, int(bits), int(name == "gptq"))


def stems(names: Iterable[str]) -> frozenset[str]:
    """Names of the layers that are quantized, without what follows the last dot."""
    return frozenset(n.removesuffix(".qweight") for n in names if n.endswith(".qweight"))


def plain_name(name: str, layers: frozenset[str]) -> str:
    """What a float checkpoint would call the tensor that `name` is a part of."""
    stem, _, part = name.rpartition(".")
    return f"{stem}.weight" if stem in layers and part in PARTS else name


def shape(layout: Scheme, file: SafetensorsFile, stem: str) -> tuple[int, ...]:
    """(N, K)"""
    words = file.tensors[f"{stem}.qweight"].shape
    if len(words) != 2:
        return words
    per = layout.per_word
    return (words[1], words[0] * per) if layout.method == "gptq" else (words[1] * per, words[0])


def load(layout: Scheme, files: Mapping[str, SafetensorsFile], stem: str) -> Blocks:
    """The layer; Corrupt or Incompatible names the tensor that is missing, wrong or in the way."""
    words = _words(files, f"{stem}.qweight")
    if words.ndim != 2:
        _misfit(files, f"{stem}.qweight", "not two axes")
    n, k = shape(layout, files[f"{stem}.qweight"], stem)
    scales = _floats(files, f"{stem}.scales")  # (G, N)
    groups = scales.shape[0] if scales.ndim else 0
    zero_words = _words(files, f"{stem}.qzeros")
    if not groups or k % groups or scales.shape != (groups, n):
        _misfit(files, f"{stem}.scales", f"which does not divide {(k, n)}")
    if zero_words.shape != (groups, n // layout.per_word):
        _misfit(files, f"{stem}.qzeros", f"and the scales have {scales.shape}")
    _check_order(files, stem, k, k // groups)
    if layout.method == "gptq":
        codes = _split(words.T, layout.bits)  # (N, K)
        zeros = _split(zero_words, layout.bits).T  # (N, G)
    else:
        back = np.argsort(ORDER)
        codes = _split(words, 4).reshape(k, -1, 8)[..., back].reshape(k, n).T
        zeros = _split(zero_words, 4).reshape(groups, -1, 8)[..., back].reshape(groups, n).T
    mask = np.uint8((1 << layout.bits) - 1)
    zeros = (zeros + np.uint8(layout.stored_less)) & mask
    return _blocks(layout.bits, codes, scales.T, zeros, f"{stem}.qweight")


def _blocks(
    bits: int, codes: Bytes, scales: NDArray[np.floating], zeros: Bytes, name: str
) -> Blocks:
    """Groups that are larger than a block, or no power of two, are cut into equal blocks."""
    group = codes.shape[1] // scales.shape[1]
    size = min(group & -group, LARGEST_BLOCK)
    if size < SMALLEST_BLOCK:
        raise Incompatible(
            f"tensor {shown(name)} has groups of {group} inputs, which do not divide into blocks "
            f"of {SMALLEST_BLOCK}; {USE}"
        )
    zeros, scales = (np.repeat(part, group // size, axis=1) for part in (zeros, scales))
    centred = bool((zeros == 1 << (bits - 1)).all())
    packed = pack(np.ascontiguousarray(codes), bits, size)
    return Blocks(bits, size, packed, np.ascontiguousarray(scales), None if centred else zeros)


def _check_order(files: Mapping[str, SafetensorsFile], stem: str, k: int, group: int) -> None:
    name = f"{stem}.g_idx"
    if name not in files:
        return
    order = _words(files, name)
    if not np.array_equal(order, np.arange(k) // group):
        raise Incompatible(
            f"tensor {shown(name)} has the inputs out of order (GPTQ with desc_act), and groups of "
            f"neighbours are read; quantize with desc_act=False or {USE}"
        )


def _split(words: NDArray[np.uint32], bits: int) -> Bytes:
    """Integers of `bits` along the last axis, low bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    parts = (words[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return parts.astype(np.uint8).reshape(*words.shape[:-1], -1)


def _words(files: Mapping[str, SafetensorsFile], name: str) -> NDArray[np.uint32]:
    file = _file(files, name)
    tensor = file.tensors[name]
    if tensor.kind not in ("I32", "U32"):
        raise Corrupt(f"{file.path}: tensor {shown(name)} must be I32, got {tensor.kind}; {AGAIN}")
    return file.raw(tensor).view("<u4").reshape(tensor.shape)


def _floats(files: Mapping[str, SafetensorsFile], name: str) -> NDArray[np.floating]:
    """float16 as it is, else float32."""
    file = _file(files, name)
    tensor = file.tensors[name]
    raw = file.raw(tensor)
    values: NDArray[np.floating]
    match tensor.kind:
        case "F16":
            values = raw.view("<f2")
        case "BF16":
            values = widen_bfloat16(raw)
        case "F32":
            values = raw.view("<f4")
        case kind:
            raise Corrupt(f"{file.path}: tensor {shown(name)} must be F16, got {kind}; {AGAIN}")
    all_finite(file.path, name, values)
    return values.reshape(tensor.shape)


def _misfit(files: Mapping[str, SafetensorsFile], name: str, why: str) -> NoReturn:
    file = files[name]
    raise Corrupt(
        f"{file.path}: tensor {shown(name)} has shape {file.tensors[name].shape}, {why}; {AGAIN}"
    )


def _file(files: Mapping[str, SafetensorsFile], name: str) -> SafetensorsFile:
    if name not in files:
        raise Corrupt(f"tensor {shown(name)} is missing; {AGAIN}")
    return files[name]
