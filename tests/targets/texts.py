"""Text that tokenizers disagree about, and conversations."""

from __future__ import annotations

import random

HARD = (
    "The quick brown fox jumps over the lazy dog.",
    "   leading and trailing   ",
    "\t\ttabs\tand\r\nlines\n\n\nand \x0b\x0c odd ones",
    "1234567890 3.14159 1,000,000 ½ ²",
    "I'll he's WE'RE they’ve don't",
    "naïve café Ångström e\u0301 \ufb01",
    "Привет, мир! 你好,世界。 こんにちは 안녕하세요",
    "مرحبا بالعالم שלום עולם",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽",
    "non\u00a0breaking\u2003spaces\u200band\ufeffmarks",
    "<|im_start|>user\nhello<|im_end|>\n<|endoftext|>",
    "<|im_start|><|im_end|> <|im_end|>",
    "def f(x):\n    return {'a': x ** 2, \"b\": [i for i in range(10)]}\n",
    "https://example.org/path?q=a%20b&c=#frag",
    "a" * 200,
    " " * 67 + "x",
    "\U00010348 \U0001f9ff \u0e01\u0e33 \u094d",
)
PIECES = (
    *("the", " in", "IN", "fox", "'s", "42", "7", " ", "  ", "\n", "\t", ".", "...", "!?", "—"),
    *("é", "ß", "ж", "中", "あ", "ع", "ह", "👍🏽", "½", "\u200d", "\u00a0"),
    *("<|im_end|>", "<", "|>", "_", "\\"),
)  # fmt: skip
CHATS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Answer in one word. Ne dis rien d’autre."},
        {"role": "user", "content": "2 + 2?"},
    ],
    [
        {"role": "user", "content": "Say “hello” \\o/ 👋"},
        {"role": "assistant", "content": "Hello!\nHow can I help?"},
        {"role": "user", "content": "Write a poem\tabout <html> & tabs.  "},
    ],
)


def mixes(count: int) -> list[str]:
    """Seeded random strings of pieces that meet badly."""
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 24))) for _ in range(count)]
