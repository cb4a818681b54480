from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import NotFound
from edgellm.routing.database import Database
from edgellm.routing.drift import drift, kolmogorov_smirnov
from edgellm.routing.ledger import Decision, Ledger
from edgellm.routing.replay import replay
from edgellm.routing.seams import Attempt, Record
from edgellm.stream import Request, Route, Usage


def ledger(path: Path, log_text: bool = False) -> Ledger:
    ticks = iter(range(1000))
    return Ledger(Database(path / "router.db"), "here", log_text, lambda: float(next(ticks)))


def record(name: str = "a" * 32, source: str = "local", p: float = 0.8) -> Record:
    attempt = Attempt("m", source == "remote", "answered", Usage(5, 7), 0.25, 10.0, 20.0)
    return Record(
        Request.user("my secret plan"), "cascade", "cascade", None, 0.0, p, "the answer",
        Route(source, "cascade", "cascade: confident", p), (attempt,), None, name,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_decision_is_written_without_its_text(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.record(record())
    (found,) = book.latest(5)
    assert (found.reason, found.source, found.p_after) == ("cascade: confident", "local", 0.8)
    assert found.attempts[0]["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 7, "cached_tokens": 0,
    }  # fmt: skip
    assert found.prompt_text is None
    for path in tmp_path.iterdir():
        assert b"secret plan" not in path.read_bytes()
        assert b"the answer" not in path.read_bytes()
    assert found.prompt_hash == book.hash("user: my secret plan")


def test_two_logs_do_not_hash_alike(tmp_path: Path) -> None:
    first, second = ledger(tmp_path / "a"), ledger(tmp_path / "b")
    assert first.hash("x") != second.hash("x")
    assert first.hash("x") == ledger(tmp_path / "a").hash("x")
    assert (tmp_path / "a" / "router.key").stat().st_mode & 0o077 == 0


def test_text_is_kept_where_the_user_asks(tmp_path: Path) -> None:
    book = ledger(tmp_path, log_text=True)
    book.record(record())
    assert book.latest(1)[0].prompt_text == "user: my secret plan"


def test_the_same_request_is_logged_once(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.record(record())
    book.record(record())
    assert len(book.latest(9)) == 1


def test_a_decision_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.record(record("abcd1" + "0" * 27))
    book.record(record("abcd2" + "0" * 27))
    assert book.find("abcd1").request_id.startswith("abcd1")
    assert book.find("last").request_id.startswith("abcd2")
    with pytest.raises(NotFound, match="several decisions"):
        book.find("abcd")
    for name in ("", "zzzz", "abc"):
        with pytest.raises(NotFound):
            book.find(name)


def test_feedback_is_kept(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.record(record())
    book.feedback("last", good=False)
    assert book.find("last").feedback == -1


def decisions(count: int, seed: int = 0) -> list[Decision]:
    """Local answers are right with probability p; half were sent to a perfect remote by chance."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        p = float(random.random())
        remote = bool(random.random() < 0.5)
        good = remote or bool(random.random() < p)
        found.append(
            Decision(
                f"{i}", float(i), "s", "shadow", "", "remote" if remote else "local", None, p, 0.5,
                0.01 if remote else 0.0, "", "", None, None, None, (), {}, 1 if good else -1,
            )
        )  # fmt: skip
    return found


def test_replay_estimates_what_a_threshold_would_have_given() -> None:
    found = replay(decisions(20_000), 0.5)
    assert found.escalated == pytest.approx(0.5, abs=0.02)
    assert found.cost_usd == pytest.approx(0.01 * 20_000 * 0.5, rel=0.05)
    # Below 0.5 the perfect remote answers, above it p averages 0.75.
    assert found.good == pytest.approx(0.875, abs=0.01)
    assert 8_000 < found.effective <= found.counted < 12_000


def test_replay_without_verdicts_says_so() -> None:
    blank = [replace(d, feedback=None) for d in decisions(50)]
    assert replay(blank, 0.5).good is None
    assert replay([], 0.5).decisions == 0


def test_kolmogorov_smirnov_agrees_with_known_cases() -> None:
    same = np.linspace(0, 1, 400)
    assert kolmogorov_smirnov(same, same) == (0.0, 1.0)
    distance, p = kolmogorov_smirnov(np.arange(100.0), np.arange(100.0) + 20)
    # scipy.stats.ks_2samp(method="asymp") gives D = 0.2, p = 0.0366 without the correction.
    assert distance == pytest.approx(0.2)
    assert p == pytest.approx(0.034, abs=0.006)


def test_drift_is_seen_in_scores_and_in_errors_and_not_in_peace() -> None:
    random = np.random.default_rng(1)
    kept = random.random(600)
    calm = [
        replace(d, p_after=float(s))
        for d, s in zip(decisions(300), random.random(300), strict=True)
    ]
    assert drift(calm, kept, 0.99, 0.1).alarm is None
    moved = [replace(d, p_after=(d.p_after or 0) ** 3) for d in calm]
    assert "unlike the graded ones" in (drift(moved, kept, 0.99, 0.1).alarm or "")
    wrong = [replace(d, source="local", feedback=-1) for d in calm]
    assert "above risk 10%" in (drift(wrong, kept, 0.5, 0.1).alarm or "")
    assert drift([], kept, 0.5, 0.1).alarm is None
