"""What remote answers may cost: set aside before a call, booked after it.

A cap that is checked when the answer is there has been paid already. So the most that a call can
cost is reserved first, in one transaction with the sum of everything reserved and spent: however
many processes race, the sum never passes the cap. A process that dies leaves its reservation
standing, which counts as spent: rather too little is spent than too much.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from edgellm.errors import BudgetExhausted, UsageError
from edgellm.routing.database import Database
from edgellm.routing.seams import Card
from edgellm.stream import Usage

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """Caps in US dollars and in tokens (prompt and answer together); None: no such cap.

    `soft_share`: from this share of a cap on, a notice says how much is left.
    """

    usd_day: float | None = None
    usd_month: float | None = None
    usd_session: float | None = None
    tokens_day: int | None = None
    soft_share: float = 0.8

    def __post_init__(self) -> None:
        for name in ("usd_day", "usd_month", "usd_session", "tokens_day"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be 0 or more, got {value}")
        if not 0 < self.soft_share <= 1:
            raise UsageError(f"soft_share must be in (0, 1], got {self.soft_share}")

    @property
    def in_dollars(self) -> bool:
        return any(cap is not None for cap in (self.usd_day, self.usd_month, self.usd_session))


@dataclass(frozen=True, slots=True)
class Cap:
    """One cap as it stands: `used` of `limit` within `name`; `reserved` is the part of `used` that
    calls under way, or those of a process that died, have set aside. No limit: infinite."""

    name: str
    limit: float
    used: float
    unit: str
    reserved: float = 0.0

    def line(self) -> str:
        if self.limit == math.inf:
            return f"{self._amount(self.used)} {self.name}"
        if self.unit == "tokens":
            return f"{self.used:.0f} of {self.limit:.0f} tokens {self.name}"
        return f"{self._amount(self.used)} of {self._amount(self.limit)} {self.name}"

    def _amount(self, value: float) -> str:
        return f"{value:.0f} tokens" if self.unit == "tokens" else f"${value:.4f}"

    def state(self) -> str:
        """The line with what is reserved, and whether there is a cap at all."""
        held = f", {self._amount(self.reserved)} of it reserved" if self.reserved else ""
        return f"{self.line()}{held}{'' if self.limit < math.inf else ', no cap'}"


class Budget:
    """The caps of one session over the file that all sessions share."""

    def __init__(
        self, database: Database, options: BudgetOptions, session: str, clock: Clock = time.time
    ) -> None:
        self.options = options
        self._database = database
        self._session = session
        self._clock = clock

    def denial(self, card: Card, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why such a call is over the budget, None when it is within; reserves nothing."""
        with self._database.reading() as db:
            return self._denial(db, card, Usage(prompt_tokens, max_tokens))

    def reserve(self, card: Card, prompt_tokens: int, max_tokens: int) -> Reservation:
        """The most it may cost, set aside; BudgetExhausted when that is too much."""
        most = Usage(prompt_tokens, max_tokens)
        with self._database.writing() as db:
            why = self._denial(db, card, most)
            if why is not None:
                raise BudgetExhausted(f"nothing was sent: {why}")
            row = db.execute(
                "INSERT INTO spending (at, session, model, reserved_usd, reserved_tokens) "
                "VALUES (?, ?, ?, ?, ?)",
                (self._now(db), self._session, card.model, _usd(card, most), sum(_both(most))),
            )
            return Reservation(self._database, int(row.lastrowid or 0), card)

    def caps(self) -> list[Cap]:
        """Every cap that is set, and how much of it is used."""
        return [cap for cap in self.standing() if cap.limit < math.inf]

    def standing(self) -> list[Cap]:
        """What was spent today, this month and in this session, capped or not."""
        with self._database.reading() as db:
            return self._standing(db)

    def notice(self) -> str | None:
        """A line once a cap is nearly used up, else None."""
        for cap in self.caps():
            if cap.limit > 0 and cap.used >= self.options.soft_share * cap.limit:
                return f"the remote budget is nearly used: {cap.line()}"
        return None

    def _denial(self, db: sqlite3.Connection, card: Card, most: Usage) -> str | None:
        if self.options.in_dollars and card.price is None:
            return (
                f"the price of {card.model} is unknown and a budget in dollars is set; give "
                "--remote-price IN,OUT (0,0 when it is free)"
            )
        for cap in self._standing(db):
            more = float(sum(_both(most))) if cap.unit == "tokens" else _usd(card, most)
            # Sums of rounded prices: a billionth of a dollar is not an overshoot.
            if cap.used + more > cap.limit + (0 if cap.unit == "tokens" else 1e-9):
                asked = f"{more:.0f} tokens" if cap.unit == "tokens" else f"${more:.4f}"
                return f"{cap.line()} are used and this answer may take {asked}"
        return None

    def _standing(self, db: sqlite3.Connection) -> list[Cap]:
        options, now = self.options, datetime.fromtimestamp(self._now(db))
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        day, month = midnight.timestamp(), midnight.replace(day=1).timestamp()
        session = self._session
        return [
            _cap(db, "today", options.usd_day, "usd", (day, None)),
            _cap(db, "this month", options.usd_month, "usd", (month, None)),
            _cap(db, "in this session", options.usd_session, "usd", (0.0, session)),
            _cap(db, "today", options.tokens_day, "tokens", (day, None)),
        ]

    def _now(self, db: sqlite3.Connection) -> float:
        """The time, never before the last booking: a clock set back opens no second day."""
        last = db.execute("SELECT max(at) FROM spending").fetchone()[0]
        return max(self._clock(), last or 0.0)


class Reservation:
    """Money set aside for one call. Only the first of settle and refund counts."""

    def __init__(self, database: Database, row: int, card: Card) -> None:
        self._database = database
        self._row = row
        self._card = card

    def settle(self, usage: Usage) -> float:
        """Books what was used and returns its price in dollars."""
        usd = _usd(self._card, usage)
        with self._database.writing() as db:
            db.execute(
                "UPDATE spending SET usd = ?, prompt_tokens = ?, completion_tokens = ? "
                "WHERE id = ? AND usd IS NULL",
                (usd, *_both(usage), self._row),
            )
        return usd

    def refund(self) -> None:
        """Gives back all of it."""
        self.settle(Usage(0, 0))


def _usd(card: Card, usage: Usage) -> float:
    return card.price.cost_usd(usage) if card.price is not None else 0.0


def _both(usage: Usage) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


def _cap(
    db: sqlite3.Connection,
    name: str,
    limit: float | None,
    unit: str,
    within: tuple[float, str | None],
) -> Cap:
    """A cap with what was booked and what is still reserved since a time, in a session or all."""
    booked = "usd" if unit == "usd" else "prompt_tokens + completion_tokens"
    held = f"CASE WHEN usd IS NULL THEN reserved_{unit} ELSE 0 END"
    row = db.execute(
        f"SELECT total({booked}), total({held}) FROM spending "
        "WHERE at >= ? AND session = coalesce(?, session)",
        within,
    ).fetchone()
    spent, reserved = float(row[0]), float(row[1])
    return Cap(name, math.inf if limit is None else limit, spent + reserved, unit, reserved)
