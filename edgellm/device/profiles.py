"""Device profiles: data files whose every number says where it comes from.

    Profile
    ├── MemorySpec      total, usable by one application, bandwidth
    ├── CpuSpec         cores, threads worth using, instruction sets
    ├── Accelerator     execution providers in the order to try them
    ├── StorageSpec     how fast a bundle is read
    └── Source          the evidence of each number: kind, address, date

The files are `devices/*.toml` of the checkout; a wheel carries them inside this package.
"""

from __future__ import annotations

import datetime
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from edgellm.errors import Corrupt, NotFound

T = TypeVar("T")

# From the strongest evidence to the weakest.
EVIDENCE = ("measured", "vendor", "third-party", "derived", "guess")
# How far an accelerator entry was tried, from most to least.
CONFIDENCE = ("tested", "emulated", "documented")
KINDS = ("laptop", "board", "phone", "browser")
# A profile has under a hundred lines; a larger file is not one.
FILE_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """Megabytes are 1e6 bytes. `bandwidth_efficiency` is the share of the peak that decoding gets.

    `unified` means that CPU and accelerators share one pool.
    """

    total_mb: float
    usable_mb: float
    unified: bool
    bandwidth_gb_s: float
    bandwidth_efficiency: float

    @property
    def sustained_gb_s(self) -> float:
        return self.bandwidth_gb_s * self.bandwidth_efficiency


@dataclass(frozen=True, slots=True)
class CpuSpec:
    """`features` are spelled as Linux's /proc/cpuinfo spells them."""

    isa: str
    features: tuple[str, ...]
    cores: int
    threads: int
    clock_ghz: float


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One execution provider by its ONNX Runtime name; `variant` is the graph it needs."""

    kind: str
    ep: str
    variant: str
    confidence: str
    arch: str = ""


@dataclass(frozen=True, slots=True)
class StorageSpec:
    read_mb_s: float


@dataclass(frozen=True, slots=True)
class Source:
    """Evidence for `fields` (dotted names). Derived and guessed numbers explain themselves."""

    fields: tuple[str, ...]
    kind: str
    checked: str
    url: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    id: str
    name: str
    kind: str
    os: str
    memory: MemorySpec
    cpu: CpuSpec
    accelerators: tuple[Accelerator, ...]
    storage: StorageSpec
    sources: tuple[Source, ...]

    def source(self, field: str) -> Source:
        """The evidence of one number, for example of "memory.bandwidth_gb_s"."""
        return next(source for source in self.sources if field in source.fields)

    def weakest_evidence(self, names: Iterable[str]) -> str:
        """The weakest kind of evidence among the numbers that a prediction used."""
        return max((self.source(name).kind for name in names), key=EVIDENCE.index)


def profile(profile_id: str) -> Profile:
    """The profile with this id. NotFound suggests the nearest names."""
    known = {path.stem: path for path in _files()}
    if profile_id in known:
        return read(known[profile_id])
    near = difflib.get_close_matches(profile_id, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    raise NotFound(f"no device profile {profile_id!r}; {hint}")


def all_profiles() -> tuple[Profile, ...]:
    """Every profile that ships, by id."""
    return tuple(read(path) for path in _files())


def folder() -> Path:
    """Where the profiles are: inside the installed package, else in the checkout around it."""
    package = Path(__file__).parent
    places = (package / "data", package.parent.parent / "devices")
    return next((place for place in places if place.is_dir()), places[0])


def _files() -> list[Path]:
    return sorted(folder().glob("*.toml"))


def read(path: Path) -> Profile:
    """A checked profile from a file; Corrupt names the file and the field that is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise NotFound(f"cannot read the device profile {path}: {error.strerror}") from error
    if len(text) > FILE_LIMIT_BYTES:
        raise Corrupt(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; it is no device profile")
    try:
        found = parse(tomllib.loads(text.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"{path} is not valid TOML: {error}; correct it") from error
    except Corrupt as error:
        raise Corrupt(f"{path}: {error}") from error
    if found.id != path.stem:
        raise Corrupt(f"{path}: id is {found.id!r}, but the file's name says {path.stem!r}")
    return found


def parse(raw: Mapping[str, Any]) -> Profile:
    """A checked profile from decoded TOML. Every number must be covered by exactly one source."""
    text = _table(raw, "", _Head, extra=("memory", "cpu", "storage", "accelerator", "source"))
    found = Profile(
        id=text.id,
        name=text.name,
        kind=text.kind,
        os=text.os,
        memory=_table(raw.get("memory"), "memory", MemorySpec),
        cpu=_table(raw.get("cpu"), "cpu", CpuSpec),
        accelerators=_tables(raw, "accelerator", Accelerator),
        storage=_table(raw.get("storage"), "storage", StorageSpec),
        sources=_tables(raw, "source", Source),
    )
    _check_values(found)
    _check_sources(found)
    return found


@dataclass(frozen=True, slots=True)
class _Head:
    id: str
    name: str
    kind: str
    os: str


def _tables(raw: Mapping[str, Any], name: str, kind: type[T]) -> tuple[T, ...]:
    rows = raw.get(name)
    if not isinstance(rows, list) or not rows:
        raise Corrupt(f"field {name!r} must be one [[{name}]] table or more")
    return tuple(_table(row, f"{name}[{i}]", kind) for i, row in enumerate(rows))


def _table(raw: Any, where: str, kind: type[T], extra: tuple[str, ...] = ()) -> T:
    """A dataclass from a TOML table, every field present, known and of its type."""
    if not isinstance(raw, Mapping):
        raise Corrupt(f"field {where!r} must be a table [{where}]")
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind)
    unknown = set(raw) - set(hints) - set(extra)
    if unknown:
        raise Corrupt(f"unknown field {prefix + min(unknown)!r}; remove it or correct its name")
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in raw:
            values[field.name] = _value(raw[field.name], hints[field.name], prefix + field.name)
        elif field.default is MISSING:
            raise Corrupt(f"field {prefix + field.name!r} is missing")
    return kind(**values)


def _value(value: Any, hint: Any, where: str) -> Any:
    if hint in (float, int):
        right = isinstance(value, (int, float) if hint is float else int)
        if isinstance(value, bool) or not right or not math.isfinite(value) or value <= 0:
            name = "number" if hint is float else "whole number"
            raise Corrupt(f"field {where!r} must be a positive {name}, got {value!r}")
        return hint(value)
    if hint in (str, bool):
        if not isinstance(value, hint):
            raise Corrupt(f"field {where!r} must be {hint.__name__}, got {value!r}")
        return value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Corrupt(f"field {where!r} must be a list of strings, got {value!r}")
    return tuple(value)


def _check_values(found: Profile) -> None:
    memory = found.memory
    _one_of("kind", found.kind, KINDS)
    if memory.usable_mb > memory.total_mb:
        raise Corrupt(f"field 'memory.usable_mb' is above total_mb {memory.total_mb:.0f}")
    if memory.bandwidth_efficiency > 1:
        raise Corrupt("field 'memory.bandwidth_efficiency' is a share: at most 1")
    for i, accelerator in enumerate(found.accelerators):
        _one_of(f"accelerator[{i}].confidence", accelerator.confidence, CONFIDENCE)
    for i, source in enumerate(found.sources):
        _one_of(f"source[{i}].kind", source.kind, EVIDENCE)
        _check_source(f"source[{i}]", source)


def _check_source(where: str, source: Source) -> None:
    try:
        datetime.date.fromisoformat(source.checked)
    except ValueError as error:
        raise Corrupt(f"field '{where}.checked' must be a date like 2026-11-20") from error
    if source.kind in ("vendor", "third-party") and not source.url:
        raise Corrupt(f"field '{where}.url' is missing: {source.kind} figures say where they stand")
    if not source.url and not source.note:
        raise Corrupt(f"field '{where}.note' is missing: say how the number came about")


def _check_sources(found: Profile) -> None:
    numbers = {
        f"{part}.{field.name}"
        for part in ("memory", "cpu", "storage")
        for field in fields(getattr(found, part))
        if isinstance(value := getattr(getattr(found, part), field.name), (int, float))
        and not isinstance(value, bool)
    }
    said = [name for source in found.sources for name in source.fields]
    for name in said:
        if name not in numbers:
            raise Corrupt(f"a source names {name!r}, which is no number of this profile")
        if said.count(name) > 1:
            raise Corrupt(f"field {name!r} has two sources; keep the better one")
    if missing := numbers - set(said):
        raise Corrupt(f"field {min(missing)!r} has no [[source]]; every number needs one")


def _one_of(where: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Corrupt(f"field {where!r} must be one of {', '.join(allowed)}, got {value!r}")
