"""Writing systems, by the first word of a character's Unicode name: LATIN SMALL LETTER A."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Sequence

from edgellm.errors import UsageError

# What people call it → how its characters' names begin.
_OTHER_NAMES = {"han": "CJK", "chinese": "CJK", "korean": "HANGUL"}
# Letters and marks that go with any script: accents, ʰ, µ, ª, º.
_SHARED = ("COMBINING", "MODIFIER", "MICRO", "FEMININE", "MASCULINE", "VARIATION")


def written_in(names: Sequence[str]) -> Callable[[str], bool]:
    """Whether all letters of a text are of these scripts; digits and signs belong to every one.

    UsageError names a script of which Unicode has no letter.
    """
    words = {_OTHER_NAMES.get(name.lower(), name.upper()) for name in names}
    unknown = words - _first_words()
    if unknown:
        raise UsageError(
            f"no letter is written in {min(unknown).lower()!r}; "
            "try latin, cyrillic, greek, arabic, devanagari, han, hiragana, katakana or hangul"
        )
    allowed = words.union(_SHARED)
    return lambda text: all(_is_sign(char) or _first_word(char) in allowed for char in text)


def _is_sign(char: str) -> bool:
    return unicodedata.category(char)[0] not in "LM"


def _first_word(char: str) -> str:
    return unicodedata.name(char, "").partition(" ")[0]


def _first_words() -> set[str]:
    """Of all letters there are; a third of a second."""
    characters = map(chr, range(sys.maxunicode + 1))
    return {_first_word(char) for char in characters if unicodedata.category(char)[0] == "L"}
