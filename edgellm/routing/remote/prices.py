"""The user's price table. None is shipped: a price that nobody checked lately is a guess, and a
budget must not stand on one. A remote that is not in the table has an unknown price.

    [[price]]
    url = "https://api.example.com/v1"
    model = "large"
    input_usd_per_million = 2.5
    output_usd_per_million = 10.0
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from edgellm.errors import UsageError
from edgellm.routing.remote.options import Price

PRICE_FILE = "prices.toml"
TABLE_LIMIT_BYTES = 1 << 20
TEXTS = ("url", "model")
NUMBERS = ("input_usd_per_million", "output_usd_per_million")


def find_price(path: Path, url: str, model: str) -> Price | None:
    """The price of a model at a remote, None when the table or the row is not there.

    UsageError names a wrong row: a price that cannot be read must not pass for an unknown one.
    """
    if not path.is_file():
        return None
    for row in _rows(path):
        if row["url"].rstrip("/") == url and row["model"] == model:
            return Price(*(float(row[name]) for name in NUMBERS))
    return None


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            table = tomllib.loads(file.read(TABLE_LIMIT_BYTES).decode())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    rows = table.pop("price", [])
    if table or not isinstance(rows, list):
        raise UsageError(f"{path} may hold [[price]] rows and nothing else")
    for number, row in enumerate(rows, 1):
        _check(row, f"{path}: price {number}")
    return rows


def _check(row: object, where: str) -> None:
    names = (*TEXTS, *NUMBERS)
    if not isinstance(row, dict) or set(row) != set(names):
        raise UsageError(f"{where} must have exactly {', '.join(names)}")
    for name in TEXTS:
        if not isinstance(row[name], str):
            raise UsageError(f"{where}: {name} must be text, got {row[name]!r}")
    for name in NUMBERS:
        if type(row[name]) not in (int, float):
            raise UsageError(f"{where}: {name} must be a number, got {row[name]!r}")
