"""What becomes of each weight: kept as the checkpoint has it, made float, or quantized.

A recipe is a file: `recipes/*.toml` of the checkout, which a wheel carries inside this package, or
one of the user's.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgellm.errors import UsageError
from edgellm_export.tables import known_only, table, value

SUFFIX = ".toml"
# A recipe has some twenty lines; a larger file is not one.
FILE_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Keep:
    """Blocks stay bit for bit, floats keep their type (bfloat16 becomes float32: ONNX Runtime's
    CPU kernels have no bfloat16)."""


@dataclass(frozen=True, slots=True)
class Float:
    """Floating point on disk; the CPU computes in float32 either way."""

    dtype: Literal["float16", "float32"]


# MatMulNBits has kernels for these; with 2 bits and blocks of 16 it is a hundred times slower.
BLOCK_SIZES = (16, 32, 64, 128, 256)
SMALLEST_2_BIT_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Integer:
    """`bits` in blocks of `block_size` along the inputs, on a searched grid.

    A matrix whose width does not suit that gets the next smaller size that does (quantize.suits).
    asymmetric: each block has an integer zero point; minima: a float16 minimum instead, finer and
    slower.
    method "rtn" rounds to nearest; "gptq" needs calibration statistics (quantize.gptq).
    """

    bits: Literal[2, 4, 8]
    block_size: int
    asymmetric: bool
    minima: bool = False
    method: Literal["rtn", "gptq"] = "rtn"

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block_size must be 16, 32, 64, 128 or 256, got {self.block_size}")
        if self.bits == 2 and self.block_size < SMALLEST_2_BIT_BLOCK:
            raise UsageError(f"2 bits need block_size 32 or more, got {self.block_size}")
        if self.asymmetric and self.minima:
            raise UsageError("a block has a zero point or a minimum, not both")


Treatment = Keep | Float | Integer

_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,15}")
_KEYS = (
    *("name", "version", "suffix", "accuracy_level", "activations"),
    *("linear", "head", "matrices", "limits"),
)
_SUFFIX = re.compile(r"(_[a-z0-9]{1,15})?")


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a bundle may be from the float weights before it is not published (see fidelity).

    `max_kl`: mean KL in nats a token. `min_top1`: the share, among tokens that the float model is
    sure of, at which both prefer the same one.
    """

    max_kl: float = math.inf
    min_top1: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_kl > 0:
            raise UsageError(f"max_kl must be above 0, got {self.max_kl:g}")
        if not 0 <= self.min_top1 <= 1:
            raise UsageError(f"min_top1 must be between 0 and 1, got {self.min_top1:g}")


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
    version: int = 1
    limits: Limits = field(default_factory=Limits)
    activations: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"name must be lower-case letters, digits and _, got {self.name!r}")
        if not _SUFFIX.fullmatch(self.suffix):
            raise UsageError(f"suffix must be empty or like _q4, got {self.suffix!r}")
        if self.version < 1:
            raise UsageError(f"version must be 1 or more, got {self.version}")
        if self.accuracy_level not in (0, 4):
            raise UsageError(f"accuracy_level must be 0 or 4, got {self.accuracy_level}")

    @property
    def rounds(self) -> bool:
        """Whether any matrix becomes small integers that the checkpoint does not have."""
        return any(isinstance(treatment, Integer) for treatment in self._treatments)

    @property
    def is_calibrated(self) -> bool:
        """Whether calibration decides how any matrix is rounded."""
        return any(isinstance(t, Integer) and t.method == "gptq" for t in self._treatments)

    @property
    def _treatments(self) -> tuple[Treatment, ...]:
        return (self.linear, self.head, *self.matrices.values())

    def calibrated(self) -> Recipe:
        """The same with GPTQ wherever it rounds; UsageError when it rounds nothing."""
        if not self.rounds:
            raise UsageError(
                f"precision {self.name} rounds nothing that could be calibrated; "
                "use --precision int4 or int8"
            )
        linear, head = _calibrated(self.linear), _calibrated(self.head)
        matrices = {name: _calibrated(t) for name, t in self.matrices.items()}
        return replace(self, linear=linear, head=head, matrices=matrices)

    def to_json(self) -> dict[str, Any]:
        """What the manifest records, in words."""
        words: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "linear": describe(self.linear),
            "head": describe(self.head),
            "accuracy_level": self.accuracy_level,
        }
        if self.limits != Limits():
            words["limits"] = asdict(self.limits)
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


def names() -> tuple[str, ...]:
    """The recipes that ship, by name."""
    return tuple(path.stem for path in _files())


def recipe(given: str) -> Recipe:
    """The recipe of that name, or in the file of that path (see `is_file`).

    UsageError lists the names there are, or says in one line what is wrong with the file.
    """
    if is_file(given):
        return read(Path(given))
    found = next((path for path in _files() if path.stem == given), None)
    if found is None:
        raise UsageError(
            f"unknown precision {given!r}; choose one of {', '.join(names())}, or a file like "
            "./my.toml"
        )
    return read(found)


def is_file(given: str) -> bool:
    """Whether a precision is a path and not a name."""
    return given.endswith(SUFFIX) or "/" in given or os.sep in given


def folder() -> Path:
    """Where the recipes are: inside the installed package, else in the checkout around it."""
    package = Path(__file__).parent
    places = (package / "recipes", package.parent / "recipes")
    return next((place for place in places if place.is_dir()), places[0])


def _files() -> list[Path]:
    return sorted(folder().glob(f"*{SUFFIX}"))


def read(path: Path) -> Recipe:
    """A checked recipe; UsageError names the file, the key and the value that is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    if len(text) > FILE_LIMIT_BYTES:
        raise UsageError(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; it is no recipe")
    try:
        return _parse(tomllib.loads(text.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}; correct it") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _parse(raw: Mapping[str, Any]) -> Recipe:
    known_only(raw, _KEYS)
    exceptions = raw.get("matrices", {})
    known_only(exceptions, tuple(exceptions), "matrices")
    return Recipe(
        value(raw, "name", str),
        _treatment(raw.get("linear"), "linear"),
        _treatment(raw.get("head"), "head"),
        value(raw, "suffix", str),
        value({"accuracy_level": 4, **raw}, "accuracy_level", int),
        {name: _treatment(one, f"matrices.{name}") for name, one in exceptions.items()},
        value(raw, "version", int),
        table(raw.get("limits"), Limits, "limits"),
        value({"activations": "float32", **raw}, "activations", Literal["float32", "float16"]),
    )


def _treatment(raw: Any, where: str) -> Treatment:
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} = {raw!r} must be a table [{where}] with a kind")
    rest = {key: raw[key] for key in raw if key != "kind"}
    match raw.get("kind"):
        case "keep":
            return table(rest, Keep, where)
        case "float":
            return table(rest, Float, where)
        case "integer":
            # What rounds is not the file's to say: --calibrate does.
            return table(rest, Integer, where, without=("method",))
        case kind:
            raise UsageError(f"{where}.kind = {kind!r} must be one of keep, float, integer")
