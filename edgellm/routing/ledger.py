"""The decision log: why each answer came from where it came, without its text.

Prompts and answers are known by keyed hashes: the same text is recognised again, but without the
key file nobody can try texts against the log. `log_text` keeps the text too, where the user asks.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import NotFound, StorageFailed
from edgellm.routing.database import Database
from edgellm.routing.seams import Record

# The least of an id that `explain` takes; as short as people copy them.
SHORTEST_ID = 4


@dataclass(frozen=True, slots=True)
class Decision:
    """One logged request. Hashes are hexadecimal; texts are None unless they were to be kept."""

    request_id: str
    at: float
    session: str
    policy: str
    reason: str
    source: str | None
    p_before: float | None
    p_after: float | None
    propensity: float
    cost_usd: float
    prompt_hash: str
    answer_hash: str
    prompt_text: str | None
    answer_text: str | None
    shadow_agrees: bool | None
    attempts: tuple[Mapping[str, Any], ...]
    signals: Mapping[str, float]
    feedback: int | None
    pack: str | None = None


class Ledger:
    """Writes decisions and reads them back.

    `pack` names the confidence pack of the session, by the sha256 of the weights it speaks for.
    """

    def __init__(
        self,
        database: Database,
        session: str,
        log_text: bool = False,
        clock: Callable[[], float] = time.time,
        pack: str | None = None,
    ) -> None:
        self._database = database
        self._session = session
        self._log_text = log_text
        self._clock = clock
        self._pack = pack
        self._key = _key(database.path.with_suffix(".key"))

    def record(self, record: Record) -> None:
        """Writes one decision; writing the same request again changes nothing."""
        route, prompt = record.route, _prompt(record)
        agrees = None
        if record.shadow_text is not None:
            agrees = int(_same(record.text, record.shadow_text))
        row = (
            record.request_id, self._clock(), self._session, record.policy,
            route.reason if route else record.reason, route.source if route else None,
            record.p_before, record.p_after, record.propensity,
            sum(attempt.cost_usd for attempt in record.attempts),
            self.hash(prompt), self.hash(record.text),
            prompt if self._log_text else None, record.text if self._log_text else None,
            agrees, json.dumps([asdict(attempt) for attempt in record.attempts]),
            json.dumps(dict(record.signals)), None, self._pack,
        )  # fmt: skip
        with self._database.writing() as db:
            marks = ", ".join("?" * len(row))
            db.execute(f"INSERT OR IGNORE INTO decisions VALUES ({marks})", row)

    def hash(self, text: str) -> str:
        """The keyed hash of a text, as the log has it."""
        return hmac.new(self._key, text.encode(errors="surrogatepass"), "sha256").hexdigest()[:32]

    def latest(self, count: int, pack: str | None = None) -> list[Decision]:
        """The last decisions, youngest first; with `pack`, of those it judged."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT * FROM decisions WHERE ? IS NULL OR (pack = ? AND p_after IS NOT NULL) "
                "ORDER BY at DESC LIMIT ?",
                (pack, pack, count),
            )
            return [_decision(dict(row)) for row in rows]

    def find(self, request_id: str) -> Decision:
        """The decision whose id begins so; `last` is the youngest. NotFound when there is none, or
        more than one."""
        if request_id == "last":
            found = self.latest(1)
        else:
            with self._database.reading() as db:
                rows = db.execute(
                    "SELECT * FROM decisions WHERE substr(request_id, 1, ?) = ? LIMIT 2",
                    (len(request_id), request_id),
                )
                found = [_decision(dict(row)) for row in rows]
        if len(found) != 1 or len(request_id) < SHORTEST_ID:
            what = "several decisions begin with" if len(found) > 1 else "no decision is called"
            raise NotFound(f"{what} {request_id!r}; edgellm route log lists them")
        return found[0]

    def feedback(self, request_id: str, good: bool) -> None:
        """Notes whether an answer was right."""
        found = self.find(request_id)
        with self._database.writing() as db:
            db.execute(
                "UPDATE decisions SET feedback = ? WHERE request_id = ?",
                (1 if good else -1, found.request_id),
            )


def _prompt(record: Record) -> str:
    """All that was asked, turn by turn."""
    request = record.request
    if request.prompt is not None:
        return request.prompt
    return "\n".join(f"{message.role}: {message.content}" for message in request.messages)


def _same(ours: str, theirs: str) -> bool:
    """Whether two answers say the same words."""
    return ours.casefold().split() == theirs.casefold().split()


def _decision(row: dict[str, Any]) -> Decision:
    signals = json.loads(row.pop("signals") or "{}")
    attempts = tuple(json.loads(row.pop("attempts")))
    agrees = row.pop("shadow_agrees")
    return Decision(
        attempts=attempts,
        signals=signals,
        shadow_agrees=None if agrees is None else bool(agrees),
        **row,
    )


def _key(path: Path) -> bytes:
    """The key of this log, made at first use and readable by its owner alone."""
    try:
        with suppress(FileExistsError):
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
        for _ in range(50):
            # Another process may have made the file and not yet written it.
            key = path.read_bytes()
            if len(key) == 32:
                return key
            time.sleep(0.01)
    except OSError as error:
        raise StorageFailed(f"cannot use {path}: {error.strerror or error}") from error
    raise StorageFailed(f"{path} is not the key of a decision log; move it away")
