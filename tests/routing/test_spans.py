from __future__ import annotations

import random

import pytest

from edgellm.errors import UsageError
from edgellm.routing.spans import OMITTED, PASSAGE_CHARACTERS, bm25, shorten, split
from edgellm.stream import Message, Request

CITIES = [f"{a}{b}" for a in ("Bel", "Kor", "Nim", "Tas", "Ost") for b in ("ova", "heim", "dale")]
TRADES = ("salt", "glass", "wool", "copper", "honey")


def document(dice: random.Random, sentences: int = 120) -> tuple[str, str, str]:
    """(document, question, answer): one sentence has the answer."""
    city, trade = dice.choice(CITIES), dice.choice(TRADES)
    number = str(dice.randint(1000, 9999))
    others = [
        f"In {dice.choice([c for c in CITIES if c != city])} the merchants of "
        f"{dice.choice(TRADES)} had {dice.randint(100, 999)} wagons in a good year."
        for _ in range(sentences)
    ]
    needle = f"The guild of {city} once sold {number} barrels of {trade}."
    others.insert(dice.randrange(sentences), needle)
    return " ".join(others), f"How many barrels of {trade} did the guild of {city} sell?", number


def test_the_answer_is_in_what_is_sent_and_most_of_the_document_is_not() -> None:
    dice, kept, found = random.Random(1), [], 0
    for _ in range(50):
        text, question, answer = document(dice)
        short = shorten(Request.user(f"{text}\n\n{question}"), 250)
        content = short.request.messages[-1].content
        kept.append(short.share)
        found += answer in content
        assert content.endswith(question)
        assert OMITTED in content
    assert found == 50
    assert sum(kept) / 50 < 0.2


def test_passages_keep_their_order_and_the_question_its_place() -> None:
    text = "\n".join(f"Fact {i}: the mill number {i} grinds rye." * 4 for i in range(40))
    short = shorten(Request.user(f"Which mill grinds rye?\n{text}"), 200)
    content = short.request.messages[-1].content
    assert content.startswith("Which mill grinds rye?\n\n")
    numbers = [int(word.strip(":")) for word in content.split() if word.strip(":").isdigit()]
    assert numbers == sorted(numbers)


def test_short_messages_and_other_turns_are_left_alone() -> None:
    request = Request(messages=(Message("system", "x" * 9000), Message("user", "Hello?")))
    assert shorten(request, 100).request is request
    assert shorten(request, 100).share == 1.0
    raw = Request(prompt="y " * 9000)
    assert shorten(raw, 100).request is raw


def test_a_question_about_nothing_in_the_document_sends_only_itself() -> None:
    text = "The mill grinds rye. " * 200
    content = shorten(Request.user(f"{text}\nWho built Saturn?"), 100).request.messages[-1].content
    assert content == f"{OMITTED}\n\nWho built Saturn?"


def test_rare_words_count_more_than_frequent_ones() -> None:
    scores = bm25(["the mill by the river", "the mill by the castle", "a mill"], "mills castle")
    assert scores[1] > scores[0]
    assert bm25([], "x") == []


def test_passages_are_whole_sentences() -> None:
    passages = split("One. Two! Three?\nFour. " + "Long " * 100 + "end.")
    assert passages[0] == "One. Two! Three? Four."
    assert passages[1].endswith("end.")
    assert all(len(p) < PASSAGE_CHARACTERS for p in passages[:1])


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="16 tokens or more"):
        shorten(Request.user("x" * 5000), 3)
