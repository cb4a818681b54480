"""Compares tokenizers that edgellm rebuilds from GGUF files with Hugging Face's own.

    python tests/tools/compare_tokenizers.py MODEL.gguf [--write IDS.json]
    python tests/tools/compare_tokenizers.py --vocabularies llama.cpp/models

The first form needs `pip install transformers`. It writes the rebuilt tokenizer.json in the form
in which `tokenizers` saves it, prints its sha256 (to be compared with that of the published file),
loads it with transformers and compares ids on the torture list and on 10,000 random strings.
The second form reads the ggml-vocab-*.gguf files of a llama.cpp checkout, whose .out files hold
the ids that transformers gave for the texts in the .inp files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from edgellm.bundle import tokenizer
from edgellm.errors import EdgellmError
from edgellm_export.checkpoint.gguf_tokenizer import build_text_files

TORTURE = [
    "",
    " ",
    "  ",
    "   leading and trailing   ",
    "\t\ttabs\tand spaces \t ",
    "\n",
    "\n\n\n",
    "\r\n",
    "line one\nline two\r\nline three\n\n  indented",
    "a\u00a0b\u00a0\u00a0c",
    "\u00a0 \u00a0",
    "\u2003em space\u2009thin\u202fnarrow\u3000ideographic",
    "\u200bzero\u200cwidth\u200djoiners\ufeff",
    "Hello, World!",
    "hello world",
    " hello",
    "HELLO hElLo",
    "I'm you're he's we've they'll I'd don't CAN'T IT'S it\u2019s",
    "'s't're've'm'll'd",
    "'S'T'RE'VE'M'LL'D '\u017f",
    "0",
    "1234567890",
    "In 2024, 3.14159 and 1e-10, -7, +42, 1,000,000.00",
    "123abc456 a1b2c3 v1.2.3 0x1F 0b101",
    "٠١٢٣٤٥٦٧٨٩ ۰۱۲ ०१२३ １２３",
    "½ ¼ ² ³ Ⅷ ④ ㊿ 一二三",
    "$100 €5 £3 ¥7 ₹9 ₿1",
    "50% off! #1 @home *bold* _under_ ~tilde~ `code`",
    "!!! ??? ... --- === *** ///",
    "(){}[]<>«»„“”‘’‹›",
    "a.b,c;d:e|f\\g/h",
    "https://example.com/path?q=1&r=%20#frag user@example.org",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2.5f; }\n",
    "\tif err != nil {\n\t\treturn nil, err\n\t}\n",
    "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x%';",
    '{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9\\n"}}',
    '<div class="x">text &amp; more</div><!-- c -->',
    "$\\int_0^1 x^2\\,dx = \\frac{1}{3}$",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → γ ≠ δ",
    "😀",
    "😀😃😄 😁",
    "👨‍👩‍👧‍👦",
    "👩🏽‍💻 👍🏿 🏳️‍🌈 🏴‍☠️",
    "🇩🇪🇯🇵🇺🇸",
    "1️⃣2️⃣ ❤️ ☎️ ☎",
    "🫠🪿🩷",
    "مرحبا بالعالم",
    "السَّلَامُ عَلَيْكُمْ",
    "اَلْعَرَبِيَّةُ ١٢٣ abc",
    "שלום עולם שָׁלוֹם",
    "\u202eright to left\u202c \u2066isolated\u2069",
    "你好，世界！",
    "今日は良い天気ですね。カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "สวัสดีชาวโลก",
    "नमस्ते दुनिया क्षत्रिय",
    "বাংলা தமிழ் తెలుగు ಕನ್ನಡ",
    "Привет, мир! Ёлка",
    "Γειά σου Κόσμε",
    "Tiếng Việt: Xin chào thế giới",
    "Türkçe İstanbul ıI ğüşöç",
    "Größe Straße ẞ naïve café résumé",
    "e\u0301 n\u0303 a\u030a \u1e9b\u0323",
    "Z\u0351\u036b\u0343a\u0321\u034dl\u0318g\u0334o\u0337",
    "ﬁ ﬂ ﬀ ﬃ Ǆ ǅ ǆ",
    "𝒳 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 𠜎",
    "\x00\x01\x02\x1f\x7f",
    "\x80\x9f\xad",
    "\ufffd \ufffe \uffff \ue000",
    "\U0010ffff\U000e0041",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ababababababab abcabcabc",
    "                                                                x",
    "the the the the the",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more <|im_end|> end",
    "<|im_end |> <|im_end| <im_end> <|IM_END|>",
    "<repo_name>x<file_sep>y<jupyter_code>z<empty_output>",
    "<unk> <s> </s> [INST] <0x41> ▁ Ġ Ċ",
]

_RANGES = [(0x20, 0x7F), (0x09, 0x0E), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x700)]
_RANGES += [(0x900, 0xE80), (0x1100, 0x1200), (0x1E00, 0x2070), (0x20A0, 0x2400), (0x2600, 0x27C0)]
_RANGES += [(0x3000, 0x3100), (0x4E00, 0x9FB0), (0xAC00, 0xD7A4), (0xE000, 0xE010)]
_RANGES += [(0xFB00, 0xFFFE), (0x10000, 0x10400), (0x1D400, 0x1D800), (0x1F300, 0x1FB00)]


def random_strings(count: int, seed: int = 7) -> list[str]:
    """Strings of up to 40 characters, each from one to four blocks of Unicode."""
    source = random.Random(seed)
    strings = []
    for _ in range(count):
        blocks = source.choices(_RANGES, weights=[8, 2] + [1] * (len(_RANGES) - 2), k=4)
        length = source.randint(1, 40)
        picks = [source.choice(blocks) for _ in range(length)]
        strings.append("".join(chr(source.randrange(*block)) for block in picks))
    return strings


def metadata_of(path: Path) -> dict[str, Any]:
    """The decoded metadata of a GGUF file."""
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def published_form(tokenizer_json: str) -> bytes:
    """The bytes that `Tokenizer.save` of tokenizers 0.19 writes for the same tokenizer."""
    return json.dumps(json.loads(tokenizer_json), indent=2, ensure_ascii=False).encode()


def compare_model(path: Path, write: Path | None) -> int:
    """How many texts got other ids than transformers gives; the torture ids go to `write`."""
    from transformers import PreTrainedTokenizerFast

    ours_json = build_text_files(metadata_of(path)).tokenizer_json
    ours = tokenizer.parse(ours_json.encode())
    published = published_form(ours_json)
    sha256 = hashlib.sha256(published).hexdigest()
    print(f"published form: {len(published)} bytes, sha256 {sha256}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        file.write_bytes(published)
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(file))
    texts = [*TORTURE, *random_strings(10_000)]
    wrong = [t for t in texts if ours.encode(t) != theirs.encode(t, add_special_tokens=False)]
    print(f"{len(texts)} texts, {len(wrong)} with other ids: {wrong[:5]}")
    if write is not None and not wrong:
        cases = [
            {"text": text, "ids": theirs.encode(text, add_special_tokens=False)} for text in TORTURE
        ]
        record = {
            "made_by": "tests/tools/compare_tokenizers.py with transformers",
            "tokenizer_json_sha256": sha256,
            "cases": cases,
        }
        write.write_text(json.dumps(record, indent=1) + "\n")
    return len(wrong)


def compare_vocabularies(folder: Path) -> int:
    """The same for every vocabulary of a llama.cpp checkout that comes with expected ids."""
    failures = 0
    for path in sorted(folder.glob("ggml-vocab-*.gguf")):
        given = path.with_name(path.name + ".inp")
        try:
            ours = tokenizer.parse(build_text_files(metadata_of(path)).tokenizer_json.encode())
        except EdgellmError as error:
            print(f"{path.stem}: {error}")
            continue
        if not given.is_file():
            print(f"{path.stem}: no expected ids")
            continue
        texts = given.read_bytes().decode().split("\n__ggml_vocab_test__\n")
        lines = path.with_name(path.name + ".out").read_text().split("\n")
        wrong = [
            text
            for text, line in zip(texts, lines, strict=False)
            if ours.encode(text) != [int(word) for word in line.split()]
        ]
        failures += len(wrong)
        print(f"{path.stem}: {len(texts)} texts, {len(wrong)} with other ids {wrong[:5]}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--vocabularies", type=Path)
    options = parser.parse_args()
    wrong = compare_vocabularies(options.vocabularies) if options.vocabularies else 0
    wrong += compare_model(options.model, options.write) if options.model else 0
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
