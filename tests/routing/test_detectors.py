"""Identifiers are found in a corpus made here, and in nothing that only looks like them."""

from __future__ import annotations

import random

import pytest

from edgellm.routing.privacy.detectors import find


def kinds(text: str) -> list[str]:
    return [finding.kind for finding in find(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("My card is 4111 1111 1111 1111, thanks", "card"),
        ("5500-0000-0000-0004", "card"),
        ("pay DE89 3704 0044 0532 0130 00 now", "iban"),
        ("GB82WEST12345698765432.", "iban"),
        ("ssn 536-90-4399", "national-id"),
        ("NHS number 943 476 5919", "national-id"),
        ("DNI 54362315-K", "national-id"),
        ("codice fiscale RCCMNL83S18D969H", "national-id"),
        ("CPF 390.533.447-05", "national-id"),
        ("BSN 1112.22.333", "national-id"),
        ("PESEL 44051401359", "national-id"),
        ("write to jane.doe+x@mail.example.co.uk!", "email"),
        ("call +49 89 1234567 please", "phone"),
        ("(555) 123-4567", "phone"),
        ("tel. 020 7946 0958", "phone"),
        ("host 192.168.17.4 is down", "ip"),
        ("2001:db8::8a2e:370:7334", "ip"),
        ("key AKIAIOSFODNN7EXAMPLE", "secret"),
        ("ghp_" + "a1B2" * 9, "secret"),
        ("password: hunter2!X", "secret"),
        ("postgres://joe:s3cr3t@db/x", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "secret"),
        ("４１１１ １１１１ １１１１ １１１１", "card"),
    ],
)
def test_an_identifier_is_found(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "DE89 3704 0044 0532 0130 01",
        "Call me at noon; version 1.2.3.4 is out, release 10.0.0.1",
        "On 2024-05-17 at 12:30:45 we sold 1,234,567 units for 99.95",
        "localhost 127.0.0.1 and 0.0.0.0",
        "My password is long and I forgot it",
        "The token budget is 4096 tokens",
        "Pi is 3.14159265358979, e is 2.718281828459045",
        "def f(x): return x[1:2] + y['key'] # a::b",
        "ISBN 978-3-16-148410-0",
        "Order 123456789 arrived",
        "Is 2 + 2 = 4? 5550000 people say so",
        "see you@home",
    ],
)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    assert kinds(text) == []


def test_positions_are_those_of_the_text() -> None:
    text = "Ünï – mail a@b.org, card 4111111111111111."
    assert [text[f.start : f.end] for f in find(text)] == ["a@b.org", "4111111111111111"]


def luhn(digits: str) -> str:
    total = sum(
        sum(divmod(2 * int(d), 10)) if i % 2 == 0 else int(d) for i, d in enumerate(digits[::-1])
    )
    return digits + str(-total % 10)


def iban(country: str, account: str) -> str:
    spelled = "".join(str(int(c, 36)) for c in account + country + "00")
    return f"{country}{98 - int(spelled) % 97:02d}{account}"


def test_recall_on_generated_identifiers_is_whole_and_random_numbers_hardly_ever_pass() -> None:
    dice = random.Random(7)

    def digits(count: int) -> str:
        return "".join(dice.choice("0123456789") for _ in range(count))

    found = false = 0
    for _ in range(300):
        card = luhn(dice.choice("45") + digits(14))
        grouped = " ".join(card[i : i + 4] for i in range(0, 16, 4))
        found += kinds(f"Charge {dice.choice([card, grouped])} today.") == ["card"]
        account = iban("DE", digits(18))
        found += kinds(f"Konto {account}") == ["iban"]
        false += bool(kinds(f"Invoice {digits(9)} of {digits(6)}, {digits(3)}.{digits(2)} EUR"))
    assert found >= 0.99 * 600
    assert false <= 3


def test_a_long_text_is_searched_quickly_enough_to_be_searched_at_all() -> None:
    # Catastrophic backtracking would not end; this is 200 kB of near misses.
    assert kinds("1 2 3 4-5 a@b +1 (2 ::" * 9000) == []


def test_a_kind_that_is_not_wanted_hides_no_other() -> None:
    # Read as an e-mail address the end of the URL would cover the password.
    assert [f.kind for f in find("ftp://joe:a%b@host.example/x", {"secret"})] == ["secret"]
