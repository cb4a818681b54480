"""Sentences around identifiers, and clean text in which nothing is to be found."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping

from identifiers import BASE62, VARIANTS, Identifier, digits, some

WHO = (
    "Anna", "my landlord", "the customer", "our new colleague", "Mr Weber", "Zoë", "the patient",
)  # fmt: skip
WHAT = (
    "the invoice", "a refund", "the trip to Oslo", "the broken printer", "the next meeting",
    "an old contract", "the garden", "the moving boxes", "a short poem", "the quarterly plan",
)  # fmt: skip
VERBS = (
    "asked about", "is waiting for", "wrote to us about", "cancelled", "would like to discuss",
    "forgot", "sent a note on", "paid for",
)  # fmt: skip
ENDS = (
    "Please answer politely.", "Keep it short.", "Thanks!", "What should I do?",
    "Translate this into French.", "Summarise it in one sentence.", "Ciao, müde Grüße 🙂",
)  # fmt: skip
AROUND = (
    "{name}: {id}", "{name} {id}", "my {name} is {id}", "({name}: {id})", "{name}\n{id}\n",
    '"{name}": "{id}"', "{name} = '{id}'", "| {name} | {id} |", "{name} – {id}.",
    "use {name} {id},", "- {name}: {id}", "<b>{name}</b>: {id}", "{name}: `{id}`",
    "{name};{id};ok", "he said {name}: {id}!",
)  # fmt: skip
NAMES = {"card": "card number", "iban": "IBAN", "email": "mail", "phone": "phone", "ip": "host",
         "secret": "key"}  # fmt: skip


def sentence(c: random.Random) -> str:
    who = c.choice(WHO)
    return f"{who[0].upper()}{who[1:]} {c.choice(VERBS)} {c.choice(WHAT)}."


def prose(c: random.Random, sentences: int) -> str:
    return " ".join([*(sentence(c) for _ in range(sentences)), c.choice(ENDS)])


def written(identifier: Identifier, c: random.Random, variant: str = "as typed") -> str:
    """The identifier as it stands in a text, with the word that names it."""
    name = identifier.before or NAMES[identifier.kind]
    return c.choice(AROUND).format(name=name, id=VARIANTS[variant](identifier.text))


def hidden(identifier: Identifier, c: random.Random, variant: str = "as typed") -> str:
    """Prose with the identifier somewhere in it."""
    before, after = prose(c, c.randint(0, 4)), prose(c, c.randint(0, 4))
    mark = c.choice((" ", "\n", "\n\n"))
    return f"{before}{mark}{written(identifier, c, variant)}{mark}{after}"


def figures(c: random.Random) -> str:
    """Prose with the numbers of an office."""
    made = (
        f"The bill of {c.randint(1, 28):02}.{c.randint(1, 12):02}.{c.randint(1990, 2030)} is over "
        f"{c.randint(1, 9)},{digits(c, 3)}.{digits(c, 2)} euros",
        f"order {c.randint(10_000, 99_999)} of {c.randint(1990, 2030)}-{c.randint(1, 12):02}-"
        f"{c.randint(1, 28):02} at {c.randint(0, 23)}:{c.randint(0, 59):02}",
        f"room {c.randint(1, 999)}, floor {c.randint(1, 40)}, {c.randint(1, 99)} % of "
        f"{c.randint(1, 10**9)}",
        f"{c.randint(1, 999)} + {c.randint(1, 999)} = {c.randint(1, 1999)}; 10^{c.randint(2, 30)}",
        f"{c.uniform(-90, 90):.6f}, {c.uniform(-180, 180):.6f}",
        f"{c.randint(1, 99)} x {c.randint(1, 99)} x {c.randint(1, 99)} cm, {c.random():.5f} kg",
        f"ISBN 978-{c.randint(0, 9)}-{digits(c, 3)}-{digits(c, 5)}-{c.randint(0, 9)}",
        f"scores 3:1, 2-0, {c.randint(0, 9)}–{c.randint(0, 9)}, pages {c.randint(1, 99)}-"
        f"{c.randint(100, 400)}, years {c.randint(1900, 1950)}-{c.randint(1951, 2030)}",
    )
    return f"{sentence(c)} {c.choice(made)}. {prose(c, 1)}"


def machine(c: random.Random) -> str:
    """What stands in logs and programs."""
    made = (
        f"commit {some(c, '0123456789abcdef', 40)} by bot",
        f"id {uuid.UUID(int=c.getrandbits(128))} took {c.randint(1, 9999)} ms",
        f"pip install numpy=={c.randint(0, 9)}.{c.randint(0, 30)}.{c.randint(0, 9)}",
        f"at 0x{some(c, '0123456789abcdef', 16)} in main.c:{c.randint(1, 4000)}",
        f"version {c.randint(0, 9)}.{c.randint(0, 9)}.{c.randint(0, 99)}.{c.randint(0, 9)} works",
        "reset your password under settings, then the token is renewed",
        f"std::vector<int> v({c.randint(1, 99)}); a::b::c(x);",
        f"sha256 {some(c, '0123456789abcdef', 64)}",
        f"listening on 127.0.0.1:{c.randint(1024, 65535)}",
        f"file_{some(c, BASE62, 6)}.txt {c.randint(1, 10**9)} bytes, mode 0{c.randint(400, 777)}",
        "password: required; api_key=None; token = get_token()",
    )
    return f"{c.choice(made)}. {prose(c, 1)}"


def long_numbers(c: random.Random) -> str:
    """Digits that mean nothing: one of ten has the checksum of a card."""
    return f"{sentence(c)} No. {c.randint(1, 9)}{digits(c, c.randint(12, 18))}. {c.choice(ENDS)}"


CLEAN: Mapping[str, Callable[[random.Random], str]] = {
    "prose": lambda c: prose(c, c.randint(1, 6)),
    "prose with figures": figures,
    "logs and programs": machine,
}
# Nobody can tell these from what they are not; published beside the target.
AMBIGUOUS: Mapping[str, Callable[[random.Random], str]] = {"runs of 13 to 19 digits": long_numbers}
