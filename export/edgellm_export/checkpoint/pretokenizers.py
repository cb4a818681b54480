"""How byte-level BPE families cut text into words, by the name GGUF files give them.

The names are those of llama.cpp (src/llama-vocab.cpp, `tokenizer_pre`), which also lists the
expressions. Where Hugging Face composes a family's own tokenizer.json differently (Digits and
ByteLevel steps, Unicode normalization, case folding inside the expression) this table follows
Hugging Face. Families that llama.cpp cuts with code instead of an expression (kimi-k2, afmoe), or
that are not byte-level (gemma4), are not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Step = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """The steps of a pre-tokenizer, as tokenizer.json writes them, and what goes with them.

    ignore_merges: a whole word that is in the vocabulary is taken without looking at merges.
    add_bos: the beginning-of-sequence token is expected when the file does not say.
    """

    steps: tuple[Step, ...]
    normalizer: Step | None = None
    ignore_merges: bool = False
    add_bos: bool = False


def _split(expression: str) -> Step:
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> Step:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _expressions(*expressions: str) -> tuple[Step, ...]:
    return (*map(_split, expressions), _bytes(use_regex=False))


_NFC: Step = {"type": "NFC"}
_DIGIT: Step = {"type": "Digits", "individual_digits": True}
_DIGITS: Step = {"type": "Digits", "individual_digits": False}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_CJK_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{c}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{c}"
)
# Letters of alphabets with case, as DeepSeek's first tokenizer.json lists them. \x{} spells the
# ones that text tools replace by their Unicode normal form.
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ"
    r"-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ"
    r"\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀"
    r"-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def _words(digits: str, head: str = _CONTRACTIONS + "|") -> str:
    """OpenAI's cl100k expression with a family's own rule for digits."""
    return head + r"[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES


_GPT2 = (_bytes(use_regex=True),)
_DIGIT_GPT2 = (_DIGIT, *_GPT2)
_LLAMA3 = _expressions(_words(r"\p{N}{1,3}"))
_QWEN2 = _expressions(_words(r"\p{N}"))
_QWEN35 = _expressions(
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    + _SPACES
)
_GPT4O = _expressions(
    _CASED.replace("{c}", _CONTRACTIONS + "?")
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    + _SPACES
)
_TEKKEN = _expressions(_CASED.replace("{c}", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES)
_DEEPSEEK_LLM = (
    *map(_split, ("[\r\n]", _DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK)),
    _DIGIT,
    _bytes(use_regex=False),
)
_DEEPSEEK_CODER = (
    *map(_split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)),
    _DIGIT,
    _bytes(use_regex=False),
)
_DEEPSEEK3 = _expressions(r"\p{N}{1,3}", _CJK_KANA, _PUNCTUATED)
_FALCON = (
    {"type": "Punctuation", "behavior": "Contiguous"},
    _bytes(use_regex=True),
    _DIGITS,
    _split("[0-9][0-9][0-9]"),
)

# Checked against ids of Hugging Face's own tokenizers: smollm (its published tokenizer.json is
# rebuilt byte for byte), and, on the test texts that llama.cpp ships with its vocabulary files,
# command-r, deepseek-coder, deepseek-llm, falcon, gpt-2, llama-bpe, mpt, qwen2, refact, starcoder
# and qwen35 (there without the Unicode normalization that Hugging Face's Qwen3_5Tokenizer does).
# The others follow the sources above unchecked. Tool: tests/tools/compare_tokenizers.py.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "mellum", "jais"), Family(_GPT2)),
    **dict.fromkeys(("mpt", "olmo"), Family(_GPT2, _NFC)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), Family(_DIGIT_GPT2)),
    "command-r": Family(_DIGIT_GPT2, _NFC),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "pixtral", "falcon3", "falcon-h1", "lfm2", "midm-2.0"),
        Family(_LLAMA3, ignore_merges=True, add_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Family(_LLAMA3)),
    **dict.fromkeys(("glm4", "glm5"), Family(_LLAMA3, ignore_merges=True)),
    **dict.fromkeys(("qwen2", "megrez"), Family(_QWEN2, _NFC)),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "hunyuan", "grok-2"), Family(_QWEN2)),
    "qwen35": Family(_QWEN35, _NFC),
    "deepseek-llm": Family(_DEEPSEEK_LLM),
    "deepseek-coder": Family(_DEEPSEEK_CODER),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), Family(_DEEPSEEK3)),
    "falcon": Family(_FALCON),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), Family(_GPT4O)),
    "tekken": Family(_TEKKEN, ignore_merges=True, add_bos=True),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Family(_expressions(_BLOOM))),
    "viking": Family((_split(_BLOOM), _DIGIT, _bytes(use_regex=False))),
}
