"""The target table and the generators behind it; the measuring itself is a program's."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib import import_module

import early_abort
import pytest
import ranking
import synthetic
import targets
from identifier_text import CLEAN, hidden
from identifiers import CHECKSUMMED, GROUPS, VARIANTS, make
from passages import ASKED, document
from places import NAMES, after, core, put
from privacy_recall import measure
from target_rows import Row, least, missing, most, table, to_json
from zero_bytes import cases, with_code_word

from edgellm.routing.evaluation import compare
from edgellm.routing.evaluation.certificates import Check
from edgellm.routing.evaluation.report import Operating, Remote, Report
from edgellm.routing.gain import Bar
from edgellm.routing.options import RouterOptions
from edgellm.routing.privacy import KINDS, find
from edgellm.stream import Request


def test_a_row_is_judged_by_both_columns() -> None:
    row = Row("p", "calls", "60 %", 0.6, most(0.62), most(0.55))
    assert row.verdict == "pass"
    assert replace(row, value=0.55).verdict == "ambitious"
    assert replace(row, value=0.63).verdict == "MISSED"
    assert replace(row, passes=None).verdict == "report"
    assert missing("p", "calls", "needs --bundle", least(0.3)).verdict == "not measured"
    assert Row("p", "x", "nothing", float("nan"), least(0.3)).verdict == "MISSED"


def test_the_table_has_every_row_and_counts_the_verdicts() -> None:
    rows = [Row("p", "a | b", "1", 1.0, least(1.0), least(2.0)), Row("p", "c", "seen")]
    text = table(rows)
    assert "| p | a \\| b | ≥ 1 | ≥ 2 | 1 | pass |  |  |" in text
    assert text.endswith("2 rows: 1 pass, 1 report")
    assert [row["verdict"] for row in to_json(rows)] == ["pass", "report"]


@pytest.mark.parametrize("part", sorted(targets.MODULES))
def test_every_part_of_the_table_can_be_measured(part: str) -> None:
    assert callable(import_module(targets.MODULES[part]).rows)


@pytest.mark.parametrize("group", GROUPS)
def test_made_up_identifiers_are_found_in_every_writing(group: str) -> None:
    c = random.Random(1)
    for variant in VARIANTS:
        identifier = make(group, c)
        assert identifier.kind in KINDS
        text = hidden(identifier, c, variant)
        assert VARIANTS[variant](identifier.text) in text
        assert find(text), text


def test_a_wrong_digit_is_no_identifier_any_more() -> None:
    c = random.Random(2)
    for group in ("card", "iban"):
        good = make(group, c).text
        wrong = good[:-1] + str((int(good[-1]) + 1) % 10)
        assert find(f"number {good}")[0].kind == group
        assert not [f for f in find(f"number {wrong}") if f.kind == group]


def test_clean_text_has_no_findings() -> None:
    c = random.Random(3)
    for make_text in CLEAN.values():
        assert not [text for text in (make_text(c) for _ in range(50)) if find(text)]


def test_recall_is_measured_by_kind_and_writing() -> None:
    found = measure(2)
    assert set(found.groups) == set(GROUPS)
    assert found.checksummed == 1.0
    assert found.false_share <= 0.01
    assert max(found.not_covered.values()) < 0.5
    assert set(CHECKSUMMED) < set(GROUPS)


def test_the_same_seed_makes_the_same_fuzz_and_all_places_and_kinds_come() -> None:
    fuzz = list(cases(272))
    assert fuzz == list(cases(272))
    assert {case.place for case in fuzz} == set(NAMES)
    for case in fuzz:
        request = case.request
        texts = [*(m.content for m in request.messages), request.prompt or "", *request.stop]
        assert any(case.secret in text for text in (*texts, case.prefix))


def test_the_next_turn_is_the_same_conversation_without_the_identifier() -> None:
    request, _ = put("earlier turn", "my card 4111", lambda: "Hello.", 0)
    later = after(request, "4111")
    assert later is not None
    assert later.messages[0] == request.messages[0]
    assert not any("4111" in message.content for message in later.messages)
    assert after(Request.user("my card 4111"), "4111") is None


def test_a_code_word_takes_the_identifiers_place() -> None:
    for case in cases(16):
        changed = with_code_word(case)
        everything = repr(changed.request) + changed.prefix
        assert case.secret not in everything
        assert changed.secret in everything
    assert core("password: abc") == "abc"
    assert core("postgres://app:x1@db.internal/shop") == "x1"


def test_documents_have_the_needle_once_and_their_size() -> None:
    c = random.Random(4)
    for make_needle in ASKED.values():
        needle = make_needle(c)
        text = document(c, 1500, needle)
        assert all(text.count(fact) == 1 for fact in needle.hidden)
        assert len(text) >= 1500 * 4


def test_an_answer_is_stopped_where_the_routers_watch_would() -> None:
    graded = synthetic.records(1).graded[0]
    count = len(graded.observed.tokens)
    options = RouterOptions("cascade", check_tokens=2, abort_checks=2, abort_margin=0.0)
    low = early_abort.Known(graded, (0.1,) * count, 0.1)
    assert early_abort.stopped_at(low, 0.5, options) == 4
    high = early_abort.Known(graded, (0.9,) * count, 0.9)
    assert early_abort.stopped_at(high, 0.5, options) is None
    seen = early_abort.replay([low, high], 0.5, options)
    assert (seen.escalated, seen.saved, seen.lost) == (1, (count - 4) / count, 0.0)
    assert Bar(0.5).escalates(low.final)


def test_an_answer_that_would_have_stayed_and_was_right_is_a_loss() -> None:
    graded = replace(synthetic.records(1).graded[0], lenient=True)
    count = len(graded.observed.tokens)
    known = early_abort.Known(graded, (0.1,) * count, 0.9)
    options = RouterOptions("cascade", check_tokens=2, abort_checks=1, abort_margin=0.0)
    seen = early_abort.replay([known], 0.5, options)
    assert (seen.given_up, seen.lost, seen.escalated) == (1, 1.0, 0)


def test_ranking_rows_say_what_the_report_says() -> None:
    pack = compare.Row("pack", "after", 0.9, (0.88, 0.92), 0.85, 0.8, 0.9, 0.02, 0.6, 0.8)
    remote = Remote(compare.REMOTE_ACCURACY, (0.6, 0.3, 0.6), (0.5, 0.2, 0.4), (0.9, 0.5, 0.8))
    check = Check(0.10, 0.95, 500, 200, 20, 500, 0.45, 0.5)
    operating = Operating(0.95, 0.5, 0.6, 0.93, 0.96)
    report = Report(
        400, 0.5, ("a",), (pack,), ("mean", 0.05, -0.01, 0.1), 0.04, 0.2, (remote,), operating,
        (check,), 0.2, {},
    )  # fmt: skip
    verdicts = {row.metric: row.verdict for row in ranking.report_rows(report, None, pack)}
    assert verdicts["lift over mean"] == "MISSED"
    assert verdicts["nAPGR"] == "pass"
    assert verdicts["remote calls for 95 % of the remote's quality"] == "pass"
    assert verdicts["ECE of P(correct)"] == "pass"
    assert verdicts["certificates at risk 10%"] == "ambitious"
