"""Personal identifiers and secrets in text, found without a model.

Numbers count only when their checksum holds (python-stdnum); national numbers whose checksum lets
one random number in ten pass need a separator or a word beside them that names them. Names,
addresses, birthdays and anything said in plain words are not found: no pattern tells them from
other text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from edgellm.routing.privacy.secrets import secrets

# Written forms that are one character in either spelling: positions stay what they were.
_PLAIN = str.maketrans(
    {0xFF10 + i: str(i) for i in range(10)}
    | {0xFF20: "@", 0xFF0E: ".", 0xFF0B: "+", 0xA0: " ", 0x202F: " ", 0x2009: " "}
    | dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFF0D), "-")
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters [start, end) of a text, and what they are. Never holds the text itself."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class National:
    """A national number: `module` of stdnum validates it. `names` are the words that stand beside
    it; `weak` ones, with one check digit or none, need such a word or a separator."""

    module: str
    pattern: str
    names: str
    weak: bool


NATIONAL = (
    National("us.ssn", r"\d{3}-\d{2}-\d{4}|\d{9}", r"ssn|social security", True),
    National("gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", r"nhs", True),
    National("de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", r"steuer|idnr|tax id|tin", True),
    National("fr.nir", r"[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d", r"nir|sécu|insee", False),
    National("es.dni", r"\d{8}-?[A-Z]", r"dni|nif", False),
    National("es.nie", r"[XYZ]-?\d{7}-?[A-Z]", r"nie", False),
    National("it.codicefiscale", r"[A-Z]{6}\d\d[A-Z]\d\d[A-Z]\d{3}[A-Z]", r"codice", False),
    National("nl.bsn", r"\d{4}[. ]?\d\d[. ]?\d{3}", r"bsn|burger", True),
    National("br.cpf", r"\d{3}\.?\d{3}\.?\d{3}-?\d\d", r"cpf", False),
    National("pl.pesel", r"\d{11}", r"pesel", True),
    National("se.personnummer", r"(?:\d\d)?\d{6}[-+]\d{4}", r"personnummer", False),
    National("in_.aadhaar", r"\d{4} ?\d{4} ?\d{4}", r"aadhaar|uidai", True),
    National("cn.ric", r"\d{17}[\dX]", r"身份证", False),
    National("ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", r"\bsin\b|social insurance", True),
)
# How far from a weak number the word that names it may stand.
NEARBY_CHARACTERS = 40

_CARD = re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?!\d|[.,]\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{2,4}){3,8}(?: ?[A-Z0-9]{1,3})?\b")
_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z]{2,24}(?![\w-])"
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?<!\d[ -])(?:"
    r"\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)|\d{1,4})(?:[ .-]?\d{2,4}){1,4}"  # +49 89 1234
    r"|\(\d{3}\) ?\d{3}[ -.]\d{4}"  # (555) 123-4567
    r"|\d{3}[.-]\d{3}[.-]\d{4}"  # 555-123-4567
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5})(?![\w-]|\.\d)"  # 089/1234567, 020 7946 0958
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION = re.compile(r"(?:\bv|version|release|build)\s*$", re.IGNORECASE)


KINDS = ("secret", "card", "iban", "national-id", "email", "phone", "ip")


def find(text: str, kinds: Collection[str] = KINDS) -> tuple[Finding, ...]:
    """What the text holds of these kinds, in order, overlaps given to the one that starts first."""
    plain = text.translate(_PLAIN)
    found = sorted(
        (f for detect in DETECTORS for f in detect(plain) if f.kind in kinds),
        key=lambda f: (f.start, -f.end),
    )
    kept: list[Finding] = []
    for finding in found:
        if not kept or finding.start >= kept[-1].end:
            kept.append(finding)
    return tuple(kept)


def _secrets(text: str) -> Iterator[Finding]:
    for start, end in secrets(text):
        yield Finding("secret", start, end)


def _cards(text: str) -> Iterator[Finding]:
    """Payment cards: 13 to 19 digits of an issuer (ISO/IEC 7812: 2 to 6 first), Luhn."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match[0])
        if digits[0] in "23456" and len(set(digits)) > 1 and _valid("luhn", digits):
            yield Finding("card", *match.span())


def _ibans(text: str) -> Iterator[Finding]:
    for match in _IBAN.finditer(text):
        # The pattern may have taken the word behind it too.
        candidate = match[0]
        while len(candidate) > 14 and not _valid("iban", candidate):
            candidate = candidate.rpartition(" ")[0]
        if len(candidate) > 14:
            yield Finding("iban", match.start(), match.start() + len(candidate))


def _nationals(text: str) -> Iterator[Finding]:
    for number in NATIONAL:
        pattern = re.compile(rf"(?<![\w.-])(?:{number.pattern})(?![\w-]|[.,]\d)")
        for match in pattern.finditer(text):
            if number.weak and not _named(text, match, number.names):
                continue
            if _valid(number.module, match[0]):
                yield Finding("national-id", *match.span())


def _named(text: str, match: re.Match[str], names: str) -> bool:
    """Whether a word beside the number says what it is, or it is written in a form of its own."""
    start = max(match.start() - NEARBY_CHARACTERS, 0)
    around = text[start : match.start()] + text[match.end() : match.end() + NEARBY_CHARACTERS]
    if re.search(names, around, re.IGNORECASE):
        return True
    return bool(re.fullmatch(r"\d{3}-\d{2}-\d{4}", match[0]))


def _emails(text: str) -> Iterator[Finding]:
    for match in _EMAIL.finditer(text):
        yield Finding("email", *match.span())


def _phones(text: str) -> Iterator[Finding]:
    for match in _PHONE.finditer(text):
        # E.164: fifteen digits at most; fewer than eight are extensions and years.
        if 8 <= sum(c.isdigit() for c in match[0]) <= 15:
            yield Finding("phone", *match.span())


def _addresses(text: str) -> Iterator[Finding]:
    """IP addresses of some machine: not loopback, unspecified, or the version of a program."""
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if address.is_loopback or address.is_unspecified:
                continue
            # "a::b" is an address, but in text it is more often something else.
            if address.version == 6 and len([g for g in match[0].split(":") if g]) < 3:
                continue
            if not _VERSION.search(text[max(match.start() - 12, 0) : match.start()]):
                yield Finding("ip", *match.span())


DETECTORS: tuple[Callable[[str], Iterator[Finding]], ...] = (
    _secrets,
    _cards,
    _ibans,
    _nationals,
    _emails,
    _phones,
    _addresses,
)


@cache
def _validator(module: str) -> Callable[[str], bool]:
    found: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return found


def _valid(module: str, number: str) -> bool:
    return bool(_validator(module)(number))
