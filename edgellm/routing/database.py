"""The router's SQLite file: budget and decisions, safe under concurrent processes.

SQLite's own locks order the writers; WAL keeps readers out of their way. A file that is damaged,
or newer than this version, is refused and never written to.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edgellm.errors import Corrupt, Incompatible, StorageFailed

VERSION = 2
# How long a writer waits for the others; a transaction here takes about a millisecond.
BUSY_S = 20.0

SCHEMA = """
CREATE TABLE spending (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, session TEXT NOT NULL, model TEXT NOT NULL,
    reserved_usd REAL NOT NULL, reserved_tokens INTEGER NOT NULL,
    usd REAL, prompt_tokens INTEGER, completion_tokens INTEGER
);
CREATE INDEX spending_at ON spending (at);
CREATE TABLE decisions (
    request_id TEXT PRIMARY KEY, at REAL NOT NULL, session TEXT NOT NULL, policy TEXT NOT NULL,
    reason TEXT NOT NULL, source TEXT, p_before REAL, p_after REAL, propensity REAL NOT NULL,
    cost_usd REAL NOT NULL, prompt_hash TEXT NOT NULL, answer_hash TEXT NOT NULL,
    prompt_text TEXT, answer_text TEXT, shadow_agrees INTEGER, attempts TEXT NOT NULL,
    signals TEXT, feedback INTEGER, pack TEXT
);
CREATE INDEX decisions_at ON decisions (at);
"""


class Database:
    """Connections to one file. Each use opens its own: threads and forks need not share any."""

    def __init__(self, path: Path) -> None:
        """StorageFailed, Corrupt or Incompatible say what is wrong with the file."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Who asked what is nobody else's: the file is made for its owner alone.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StorageFailed(f"cannot write {path}: {error.strerror or error}") from error
        with self.writing() as db:
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                for statement in SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            elif found == 1:
                # Which confidence pack judged an answer was not written down then.
                db.execute("ALTER TABLE decisions ADD COLUMN pack TEXT")
                db.execute(f"PRAGMA user_version = {VERSION}")
            elif found != VERSION:
                raise Incompatible(
                    f"{path} has version {found}, this edgellm writes {VERSION}; move it away"
                )

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer runs beside; rolled back when the block raises."""
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as db:
            yield db

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.row_factory = sqlite3.Row
                yield db
        except sqlite3.OperationalError as error:
            raise StorageFailed(f"cannot use {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise Corrupt(f"{self.path} is damaged ({error}); move it away") from error
