"""Identifiers that nobody has, for every kind the privacy guard knows, and text to hide them in.

They are made from what their issuers document, not from the guard's patterns; python-stdnum
confirms the checksums. Everything comes from a seed.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module

POOL = 150
LETTERS, DIGITS = string.ascii_uppercase, string.digits
BASE62 = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Identifier:
    """`text` as a user writes it; `before` is the word that names it, where it goes unfound
    without one."""

    kind: str
    group: str
    text: str
    before: str = ""


def some(chance: random.Random, alphabet: str, count: int) -> str:
    return "".join(chance.choices(alphabet, k=count))


def digits(chance: random.Random, count: int) -> str:
    return some(chance, DIGITS, count)


def date(chance: random.Random, form: str) -> str:
    year, month, day = chance.randint(1940, 1999), chance.randint(1, 12), chance.randint(1, 28)
    return form.format(y=year, yy=year % 100, m=month, d=day)


def spaced(text: str, sizes: tuple[int, ...], mark: str) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return mark.join([*parts, text[at:]] if at < len(text) else parts)


def valid(module: str, make: Callable[[], str]) -> str:
    """The first of `make`'s numbers whose checksum holds."""
    is_valid = import_module(f"stdnum.{module}").is_valid
    while not is_valid(number := make()):
        pass
    return number


def card(c: random.Random) -> str:
    issuer, length = c.choice(
        (("4", 16), (str(c.randint(51, 55)), 16), ("34", 15), ("37", 15), ("6011", 16),
         ("35", 16), ("4", 13), ("30", 14), ("62", 19))
    )  # fmt: skip
    number = valid("luhn", lambda: issuer + digits(c, length - len(issuer)))
    mark = c.choice(("", "", " ", "-"))
    return spaced(number, (4, 6, 5) if length == 15 else (4,) * (length // 4), mark)


IBANS = {"DE": "18n", "FR": "23n", "GB": "4a14n", "NL": "4a10n", "AT": "16n", "PL": "24n",
         "CH": "17n", "IE": "4a14n", "PT": "21n", "SE": "20n", "DK": "14n", "LU": "16n",
         "BE": "12n"}  # fmt: skip


def iban(c: random.Random) -> str:
    country = c.choice(sorted(IBANS))
    form = IBANS[country]

    def make() -> str:
        letters = some(c, LETTERS, 4) if "a" in form else ""
        account = letters + digits(c, int(form.replace("4a", "")[:-1]))
        check = import_module("stdnum.iban").calc_check_digits(f"{country}00{account}")
        return f"{country}{check}{account}"

    number = valid("iban", make)
    return spaced(number, (4,) * (len(number) // 4), c.choice(("", " ")))


NATIONAL: Mapping[str, tuple[str, Callable[[random.Random], str], tuple[str, ...]]] = {
    # module: the word beside it, how it is made, the sizes of its groups
    "us.ssn": ("social security number", lambda c: digits(c, 9), (3, 2, 4)),
    "gb.nhs": ("NHS number", lambda c: digits(c, 10), (3, 3, 4)),
    "de.idnr": ("Steuer-ID", lambda c: digits(c, 11), (2, 3, 3, 3)),
    "fr.nir": (
        "numéro de sécu", lambda c: c.choice("12") + date(c, "{yy:02}{m:02}") + digits(c, 10),
        (1, 2, 2, 2, 3, 3, 2),
    ),
    "es.dni": ("DNI", lambda c: digits(c, 8) + c.choice(LETTERS), ()),
    "es.nie": ("NIE", lambda c: c.choice("XYZ") + digits(c, 7) + c.choice(LETTERS), ()),
    "it.codicefiscale": (
        "codice fiscale",
        lambda c: some(c, "BCDFGLMNPRST", 6) + date(c, "{yy:02}") + c.choice("ABCDEHLMPRST")
        + f"{c.randint(1, 28):02}H501" + c.choice(LETTERS), (),
    ),
    "nl.bsn": ("BSN", lambda c: digits(c, 9), (4, 2, 3)),
    "br.cpf": ("CPF", lambda c: digits(c, 11), ()),
    "pl.pesel": ("PESEL", lambda c: date(c, "{yy:02}{m:02}{d:02}") + digits(c, 5), ()),
    "se.personnummer": (
        "personnummer", lambda c: date(c, "{yy:02}{m:02}{d:02}") + "-" + digits(c, 4), (),
    ),
    "in_.aadhaar": ("Aadhaar", lambda c: c.choice("23456789") + digits(c, 11), (4, 4, 4)),
    "cn.ric": (
        "身份证", lambda c: "110101" + date(c, "{y}{m:02}{d:02}") + digits(c, 3)
        + c.choice(DIGITS + "X"), (),
    ),
    "ca.sin": ("social insurance number", lambda c: c.choice("1234567") + digits(c, 8), (3, 3, 3)),
}  # fmt: skip
DASHED = ("us.ssn",)


def national(module: str, c: random.Random) -> Identifier:
    word, make, sizes = NATIONAL[module]
    number = valid(module, lambda: make(c))
    if module == "br.cpf" and c.random() < 0.5:
        number = f"{number[:3]}.{number[3:6]}.{number[6:9]}-{number[9:]}"
    elif sizes and c.random() < 0.7:
        mark = "-" if module in DASHED else "." if module == "nl.bsn" else " "
        number = spaced(number, sizes, mark)
    return Identifier("national-id", module, number, word)


def email(c: random.Random) -> str:
    name = c.choice(("anna", "ben.m", "c.dora", "emil_f", "gus-h", "jana+news", "x1", "k.lee.jr"))
    host = c.choice(("example", "mail.example", "uni-basel", "firma", "a1b2", "post.example"))
    return f"{name}{c.choice(('', c.randint(1, 99)))}@{host}.{c.choice(('org', 'de', 'co.uk'))}"


def phone(c: random.Random) -> str:
    form = c.choice((
        "+49 {2} {7}", "+1 {3} {3} {4}", "+44 20 {4} {4}", "+33 6 {2} {2} {2} {2}", "({3}) {3}-{4}",
        "{3}-{3}-{4}", "{3}.{3}.{4}", "020 {4} {4}", "089/{7}", "+41 79 {3} {2} {2}", "+86{11}",
        "+1-{3}-{3}-{4}", "030 {4} {4}",
    ))  # fmt: skip
    for size in "234567":
        while f"{{{size}}}" in form:
            some_digits = str(c.randint(2, 9)) + digits(c, int(size) - 1)
            form = form.replace(f"{{{size}}}", some_digits, 1)
    return form.replace("{11}", "13" + digits(c, 9))


def address(c: random.Random) -> str:
    if c.random() < 0.6:
        return ".".join(str(c.randint(2, 250)) for _ in range(4))
    if c.random() < 0.5:
        return ":".join(f"{c.randint(1, 65535):x}" for _ in range(8))
    return f"2001:db8:{c.randint(1, 65535):x}:{c.randint(1, 65535):x}::{c.randint(1, 9)}"


def password(c: random.Random) -> str:
    word = c.choice(("Sommer", "tiger", "Qwert", "moon", "Xk")) + digits(c, 3)
    return word + c.choice("!#$%&?") + some(c, BASE62, 3)


def jwt(c: random.Random) -> str:
    head, body = ({"alg": "HS256", "typ": "JWT"}, {"sub": digits(c, 8), "iat": 1700000000})
    parts = (base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=")
             for p in (head, body))  # fmt: skip
    return ".".join((*parts, some(c, BASE62, 43)))


def pem(c: random.Random) -> str:
    lines = "\n".join(some(c, BASE62 + "+/", 64) for _ in range(3))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"


SECRETS: Mapping[str, Callable[[random.Random], str]] = {
    "AWS": lambda c: "AKIA" + some(c, LETTERS + DIGITS, 16),
    "GitHub": lambda c: c.choice(("ghp_", "gho_", "ghs_")) + some(c, BASE62, 36),
    "GitLab": lambda c: "glpat-" + some(c, BASE62, 20),
    "OpenAI": lambda c: c.choice(("sk-", "sk-proj-")) + some(c, BASE62, 48),
    "Anthropic": lambda c: "sk-ant-api03-" + some(c, BASE62 + "-_", 93),
    "Stripe": lambda c: c.choice(("sk_live_", "rk_test_")) + some(c, BASE62, 24),
    "Slack": lambda c: f"xoxb-{digits(c, 12)}-{digits(c, 12)}-" + some(c, BASE62, 24),
    "Google": lambda c: "AIza" + some(c, BASE62 + "-_", 35),
    "Hugging Face": lambda c: "hf_" + some(c, string.ascii_letters, 34),
    "npm": lambda c: "npm_" + some(c, BASE62, 36),
    "SendGrid": lambda c: f"SG.{some(c, BASE62, 22)}.{some(c, BASE62, 43)}",
    "JSON web token": jwt,
    "private key": pem,
    "password in a URL": lambda c: f"postgres://app:{password(c)}@db.internal/shop",
    "password": lambda c: f"{c.choice(('password', 'Passwort: pwd', 'secret'))}: {password(c)}",
}


def make(group: str, c: random.Random) -> Identifier:
    if group in NATIONAL:
        return national(group, c)
    if group in SECRETS:
        return Identifier("secret", group, SECRETS[group](c))
    makers = {"card": card, "iban": iban, "email": email, "phone": phone, "ip": address}
    return Identifier(group, group, makers[group](c))


GROUPS = ("card", "iban", *NATIONAL, "email", "phone", "ip", *SECRETS)
# Those whose own checksum confirms them.
CHECKSUMMED = ("card", "iban", *NATIONAL)


@cache
def pool(group: str, seed: int = 0) -> tuple[Identifier, ...]:
    """Identifiers of one group, made once: the rarer checksums take many tries."""
    chance = random.Random(f"{seed} {group}")
    return tuple(make(group, chance) for _ in range(POOL))


def fullwidth(text: str) -> str:
    return text.translate({ord(d): 0xFF10 + int(d) for d in DIGITS})


# How the same identifier comes from another keyboard, a PDF or a web page.
VARIANTS: Mapping[str, Callable[[str], str]] = {
    "as typed": lambda text: text,
    "full-width digits": fullwidth,
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "narrow spaces": lambda text: text.replace(" ", "\u202f"),
    "typographic hyphens": lambda text: text.replace("-", "\u2011"),
}
# What no pattern undoes; measured and published, not promised.
NOT_COVERED: Mapping[str, Callable[[str], str]] = {
    "zero-width characters between digits": lambda text: "\u200b".join(text),
    "digits of another script": lambda text: text.translate(
        {ord(d): 0x0660 + int(d) for d in DIGITS}
    ),
    "one space between all characters": lambda text: " ".join(text),
    "spelled backwards": lambda text: text[::-1],
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
}
