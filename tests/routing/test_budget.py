from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from edgellm.errors import BudgetExhausted, Corrupt, Incompatible, UsageError
from edgellm.routing.budget import Budget, BudgetOptions
from edgellm.routing.database import Database
from edgellm.routing.ledger import Ledger
from edgellm.routing.remote.options import Price
from edgellm.routing.seams import Record
from edgellm.stream import Request, Usage

# 0.001 dollars a token.
PRICE = Price(1000.0, 1000.0)


@dataclass(frozen=True)
class Card:
    model: str = "big"
    attempts: int = 1
    tier: int = 0
    context_tokens: int | None = None
    capabilities: frozenset[str] = frozenset()
    price: Price | None = PRICE


def budget(path: Path, clock: Callable[[], float] | None = None, **caps: float) -> Budget:
    options = BudgetOptions(**caps)  # type: ignore[arg-type]
    if clock is None:
        return Budget(Database(path / "router.db"), options, "here")
    return Budget(Database(path / "router.db"), options, "here", clock)


def test_the_most_a_call_may_cost_is_set_aside_and_the_rest_comes_back(tmp_path: Path) -> None:
    purse = budget(tmp_path, usd_day=1.0)
    held = purse.reserve(Card(), 100, 400)
    assert purse.caps()[0].used == pytest.approx(0.5)
    assert held.settle(Usage(100, 50)) == pytest.approx(0.15)
    assert purse.caps()[0].used == pytest.approx(0.15)


def test_what_would_pass_the_cap_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    purse = budget(tmp_path, usd_day=1.0)
    purse.reserve(Card(), 100, 700)
    with pytest.raises(BudgetExhausted, match=r"\$0\.8000 of \$1\.0000 today are used.*\$0\.3000"):
        purse.reserve(Card(), 100, 200)
    assert purse.denial(Card(), 100, 200) is not None
    assert purse.denial(Card(), 100, 100) is None


def test_a_failed_call_is_refunded_and_only_once(tmp_path: Path) -> None:
    purse = budget(tmp_path, usd_day=1.0)
    held = purse.reserve(Card(), 100, 400)
    held.refund()
    held.settle(Usage(100, 400))
    assert purse.caps()[0].used == 0


def test_an_unknown_price_is_not_free_under_a_cap(tmp_path: Path) -> None:
    purse = budget(tmp_path, usd_month=5.0)
    with pytest.raises(BudgetExhausted, match="the price of big is unknown"):
        purse.reserve(Card(price=None), 1, 1)
    purse.reserve(Card(price=Price(0, 0)), 10**6, 10**6)
    free = budget(tmp_path)
    free.reserve(Card(price=None), 1, 1)


def test_tokens_have_a_cap_of_their_own(tmp_path: Path) -> None:
    purse = budget(tmp_path, tokens_day=1000)
    purse.reserve(Card(price=None), 500, 300)
    with pytest.raises(BudgetExhausted, match="800 of 1000 tokens today are used"):
        purse.reserve(Card(price=None), 200, 100)


def test_sessions_have_caps_of_their_own_and_days_are_shared(tmp_path: Path) -> None:
    path = Database(tmp_path / "router.db")
    options = BudgetOptions(usd_session=0.5, usd_day=0.8)
    first, second = (Budget(path, options, name) for name in ("a", "b"))
    first.reserve(Card(), 100, 400)
    with pytest.raises(BudgetExhausted, match="in this session"):
        first.reserve(Card(), 0, 1)
    second.reserve(Card(), 100, 200)
    with pytest.raises(BudgetExhausted, match="today"):
        second.reserve(Card(), 0, 100)


def test_a_new_day_opens_a_new_cap_and_a_clock_set_back_does_not(tmp_path: Path) -> None:
    times = [datetime(2026, 3, 31, 23, 59).timestamp()]
    purse = budget(tmp_path, clock=lambda: times[-1], usd_day=1.0, usd_month=10.0)
    purse.reserve(Card(), 0, 1000)
    assert purse.denial(Card(), 0, 1) is not None
    times.append(datetime(2026, 4, 1, 0, 1).timestamp())
    purse.reserve(Card(), 0, 1000)
    assert [cap.used for cap in purse.caps()] == pytest.approx([1.0, 1.0])
    times.append(datetime(2026, 3, 30, 12, 0).timestamp())
    assert purse.denial(Card(), 0, 1) is not None


def test_a_notice_comes_before_the_cap_does(tmp_path: Path) -> None:
    purse = budget(tmp_path, usd_day=1.0)
    assert purse.notice() is None
    purse.reserve(Card(), 0, 850)
    assert "nearly used: $0.8500 of $1.0000 today" in (purse.notice() or "")


def race(path: Path, wins: multiprocessing.Queue[int]) -> None:
    purse = budget(path, usd_day=1.0)
    won = 0
    for _ in range(10):
        try:
            purse.reserve(Card(), 10, 20).settle(Usage(10, 20))
            won += 1
        except BudgetExhausted:
            continue
    wins.put(won)


def test_thirty_two_racing_processes_do_not_pass_the_cap_by_a_cent(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    wins: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=race, args=(tmp_path, wins)) for _ in range(32)]
    for worker in workers:
        worker.start()
    total = sum(wins.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    # 320 tries of 0.03 dollars: exactly 33 fit into one dollar.
    assert total == 33
    assert budget(tmp_path, usd_day=1.0).caps()[0].used == pytest.approx(0.99)


def test_a_file_that_is_no_database_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    path.write_bytes(b"not sqlite at all, but long enough to be read as a header" * 9)
    before = path.read_bytes()
    with pytest.raises(Corrupt, match="is damaged"):
        Database(path)
    assert path.read_bytes() == before


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "router.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Incompatible, match="has version 99"):
        Database(tmp_path / "router.db")


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    Database(tmp_path / "router.db")
    assert (tmp_path / "router.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_cap_must_be_an_amount(value: float) -> None:
    with pytest.raises(UsageError, match="usd_day must be 0 or more"):
        BudgetOptions(usd_day=value)


def test_a_file_of_the_first_version_is_carried_on(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    Ledger(Database(path), "here").record(Record(Request.user("?"), "cascade", "old"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE decisions DROP COLUMN pack")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    ledger = Ledger(Database(path), "here", pack="abc")
    ledger.record(Record(Request.user("?"), "cascade", "new", p_after=0.5))
    assert [(d.reason, d.pack) for d in ledger.latest(9)] == [("new", "abc"), ("old", None)]
    assert [d.reason for d in ledger.latest(9, "abc")] == ["new"]
