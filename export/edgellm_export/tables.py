"""Tables of a TOML file as dataclasses: every key known, every value of its type and range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edgellm.errors import UsageError

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def table(raw: Any, kind: type[T], where: str, without: tuple[str, ...] = ()) -> T:
    """A `kind` from the table named `where`; its fields `without` cannot be set there.

    UsageError names the key, its value, and what it may be.
    """
    hints = {k: v for k, v in get_type_hints(kind).items() if k not in without}
    known_only(raw, tuple(hints), where)
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in raw:
            key = f"{where}.{field.name}"
            values[field.name] = _value(raw[field.name], hints[field.name], key)
        elif field.name in hints and field.default is MISSING:
            raise UsageError(f"{where}.{field.name} is missing")
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def known_only(raw: Any, keys: tuple[str, ...], where: str = "") -> None:
    """UsageError unless `raw` is a table of nothing but these keys."""
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} = {raw!r} must be a table [{where}]")
    for key in raw:
        if key not in keys:
            name = f"{where}.{key}" if where else key
            raise UsageError(f"{name} = {raw[key]!r} is not known; keys are {', '.join(keys)}")


def value(raw: Mapping[str, Any], key: str, hint: Any) -> Any:
    """raw[key] as `hint`; UsageError names the key and its value."""
    if key not in raw:
        raise UsageError(f"{key} is missing")
    return _value(raw[key], hint, key)


def _value(found: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) is Literal:
        allowed = get_args(hint)
        # 8.0 and True are no 8 and no 1.
        if not any(type(found) is type(one) and found == one for one in allowed):
            raise UsageError(f"{where} = {found!r} must be one of {', '.join(map(str, allowed))}")
        return found
    if hint is float and type(found) is int:
        found = float(found)
    if type(found) is not hint or (hint is float and not math.isfinite(found)):
        raise UsageError(f"{where} = {found!r} must be {_WORDS[hint]}")
    return found
