"""What becomes of each weight: kept as the checkpoint has it, made float, or quantized."""

from __future__ import annotations

from dataclasses import dataclass
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
    """Round to nearest on a searched grid: `bits` in blocks of `block_size` along the inputs.

    A matrix whose width is no multiple of that gets the next smaller size that fits.
    """

    bits: Literal[4, 8]
    block_size: int
    asymmetric: bool

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block_size must be 16, 32, 64, 128 or 256, got {self.block_size}")


Treatment = Keep | Float | Integer


@dataclass(frozen=True, slots=True)
class Recipe:
    """`linear` for the layers, `head` for the embedding and lm_head (stored once when tied).

    `suffix` names the files as transformers.js expects them for that precision. `accuracy_level`
    4 rounds activations to int8 per block, 0 keeps them float32 (slow, for measuring).
    """

    name: str
    linear: Treatment
    head: Treatment
    suffix: str
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        if self.accuracy_level not in (0, 4):
            raise UsageError(f"accuracy_level must be 0 or 4, got {self.accuracy_level}")

    def to_json(self) -> dict[str, str | int]:
        """What the manifest records, in words."""
        return {
            "name": self.name,
            "linear": describe(self.linear),
            "head": describe(self.head),
            "accuracy_level": self.accuracy_level,
        }


def describe(treatment: Treatment) -> str:
    """One line for a person."""
    match treatment:
        case Integer(bits, block_size, asymmetric):
            kind = "asymmetric" if asymmetric else "symmetric"
            return f"int{bits}, {kind} blocks of {block_size}, round to nearest"
        case Float(dtype):
            return dtype
        case _:
            return "as the checkpoint has it"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("exact", Keep(), Keep(), "_q4"),
        Recipe("int4", Integer(4, 64, True), Integer(4, 64, True), "_q4"),
        Recipe("int8", Integer(8, 32, False), Integer(8, 32, False), "_quantized"),
        Recipe("fp16", Float("float16"), Float("float16"), "_fp16"),
        Recipe("fp32", Float("float32"), Float("float32"), ""),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; UsageError lists the names there are."""
    if name not in RECIPES:
        raise UsageError(f"unknown precision {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
