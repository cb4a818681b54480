"""What becomes of each weight: kept as the checkpoint has it, made float, or quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from edgellm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Keep:
    """Blocks stay bit for bit, floats keep their type (bfloat16 becomes float32: ONNX Runtime's
    CPU kernels have no bfloat16)."""


@dataclass(frozen=True, slots=True)
class Float:
    """Floating point on disk; the CPU computes in float32 either way."""

    dtype: Literal["float16", "float32"]


# MatMulNBits has kernels for these.
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Integer:
    """`bits` in blocks of `block_size` along the inputs, on a searched grid.

    A matrix whose width is no multiple of that gets the next smaller size that fits. asymmetric:
    each block has an integer zero point; minima: a float16 minimum instead, finer and slower.
    method "rtn" rounds to nearest; "gptq" needs calibration statistics (quantize.gptq).
    """

    bits: Literal[4, 8]
    block_size: int
    asymmetric: bool
    minima: bool = False
    method: Literal["rtn", "gptq"] = "rtn"

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block_size must be 16, 32, 64, 128 or 256, got {self.block_size}")
        if self.asymmetric and self.minima:
            raise UsageError("a block has a zero point or a minimum, not both")


Treatment = Keep | Float | Integer


@dataclass(frozen=True, slots=True)
class Recipe:
    """`linear` for the layers, `head` for the embedding and lm_head (stored once when tied).

    `matrices` has exceptions by the name of a stored matrix ("layers.0.qkv", "embed_tokens").
    `suffix` names the files as transformers.js expects them for that precision; one that keeps
    its source's blocks is named after these instead (store.stored_suffix). `accuracy_level`
    4 rounds activations to int8 per block, 0 keeps them (slow on a CPU, for measuring).
    `activations` "float16" is for CUDA and WebGPU: products, attention and the KV cache are
    float16, norms and the residual stream float32.
    """

    name: str
    linear: Treatment
    head: Treatment
    suffix: str
    accuracy_level: int = 4
    matrices: Mapping[str, Treatment] = field(default_factory=dict)
    activations: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.accuracy_level not in (0, 4):
            raise UsageError(f"accuracy_level must be 0 or 4, got {self.accuracy_level}")

    def calibrated(self) -> Recipe:
        """The same with GPTQ wherever it rounds; UsageError when it rounds nothing."""
        linear, head = _calibrated(self.linear), _calibrated(self.head)
        matrices = {name: _calibrated(t) for name, t in self.matrices.items()}
        if not any(isinstance(t, Integer) for t in (linear, head, *matrices.values())):
            raise UsageError(
                f"precision {self.name} rounds nothing that could be calibrated; "
                "use --precision int4 or int8"
            )
        return replace(self, linear=linear, head=head, matrices=matrices)

    def to_json(self) -> dict[str, str | int | dict[str, str]]:
        """What the manifest records, in words."""
        words: dict[str, str | int | dict[str, str]] = {
            "name": self.name,
            "linear": describe(self.linear),
            "head": describe(self.head),
            "accuracy_level": self.accuracy_level,
        }
        if self.activations != "float32":
            words["activations"] = self.activations
        if self.matrices:
            words["matrices"] = {name: describe(t) for name, t in self.matrices.items()}
        return words


def _calibrated(treatment: Treatment) -> Treatment:
    return replace(treatment, method="gptq") if isinstance(treatment, Integer) else treatment


def describe(treatment: Treatment) -> str:
    """One line for a person."""
    match treatment:
        case Integer(bits, block_size, asymmetric, minima, method):
            kind = "asymmetric" if asymmetric else "symmetric"
            kind = "offset" if minima else kind
            how = "calibrated (GPTQ)" if method == "gptq" else "round to nearest"
            return f"int{bits}, {kind} blocks of {block_size}, {how}"
        case Float(dtype):
            return dtype
        case _:
            return "as the checkpoint has it"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("exact", Keep(), Keep(), "_q4"),
        Recipe("compact", Keep(), Integer(4, 32, True), "_q4"),
        Recipe("int4", Integer(4, 64, True), Integer(4, 64, True), "_q4"),
        Recipe("int8", Integer(8, 32, False), Integer(8, 32, False), "_quantized"),
        Recipe("fp16", Float("float16"), Float("float16"), "_fp16"),
        Recipe("fp32", Float("float32"), Float("float32"), ""),
        # Symmetric blocks of 32 without int8 activations: what CUDA's fast path takes.
        Recipe(
            "q4f16",
            Integer(4, 32, False),
            Integer(8, 32, False),
            "_q4f16",
            accuracy_level=0,
            activations="float16",
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; UsageError lists the names there are."""
    if name not in RECIPES:
        raise UsageError(f"unknown precision {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
