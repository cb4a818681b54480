"""Keys, tokens and passwords in text: by the prefix that their makers gave them, or by being random
text behind a word like "password"."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

# The prefixes that the issuers document, so that leaked keys can be found.
PREFIXES = (
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}",  # AWS access key ids
    r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",  # GitHub
    r"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
    r"sk-(?:proj-|ant-[a-z0-9]+-|or-v1-)?[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic, OpenRouter
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"xox[abposr]-[A-Za-z0-9-]{10,}",  # Slack
    r"AIza[0-9A-Za-z_-]{35}",  # Google
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}",  # registries
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",  # JSON web tokens
)
_PREFIXED = re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(PREFIXES)})")
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/:@]+:([^\s/@]{3,})@", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[ _-]?key|access[ _-]?key|credential)s?"
    r"[\"']?(?:\s+is)?\s*[:=]?\s*[\"'`]?([^\s\"'`,;]{6,200})",
    re.IGNORECASE,
)
# Words are about 2.5 to 3.3 bits a character, random base64 above 4 once it is long.
RANDOM_BITS = 3.0


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each secret; overlapping ones may both be given."""
    for pattern in (_PREFIXED, _PEM):
        for match in pattern.finditer(text):
            yield match.span()
    for match in _URL_PASSWORD.finditer(text):
        yield match.span(1)
    for match in _NAMED.finditer(text):
        if _looks_random(match[1]):
            yield match.span(1)


def _looks_random(word: str) -> bool:
    """Whether a word has what passwords have and prose does not: digits or signs inside it, and
    hardly a repeated character."""
    word = word.rstrip(".!?)")
    if len(word) < 6 or word.isalpha() or (word.isdigit() and len(word) < 8):
        return False
    mixed = sum(bool(re.search(p, word)) for p in (r"[a-z]", r"[A-Z]", r"\d", r"[^\w]"))
    return mixed >= 3 or (entropy_bits(word) >= RANDOM_BITS and mixed >= 2)


def entropy_bits(word: str) -> float:
    """Bits a character of the word's own letter counts (Shannon)."""
    counts, total = Counter(word).values(), len(word)
    return -math.fsum(n / total * math.log2(n / total) for n in counts)
