from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from edgellm.bundle import generation, tokenizer
from edgellm.errors import Corrupt, Incompatible
from edgellm_export.checkpoint.gguf_tokenizer import build_text_files
from edgellm_export.checkpoint.pretokenizers import FAMILIES

TORTURE = Path(__file__).parent.parent / "data" / "smollm2_torture_ids.json"
TEXTS = [case["text"] for case in json.loads(TORTURE.read_text())["cases"]]
# Hugging Face's HuggingFaceTB/SmolLM2-135M-Instruct/tokenizer.json: 2,104,556 bytes.
PUBLISHED_SHA256 = "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"


def trained() -> HuggingFaceTokenizer:
    """A tokenizer composed as SmolLM2's, with another vocabulary."""
    inner = HuggingFaceTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def metadata_of(inner: HuggingFaceTokenizer, **changes: Any) -> dict[str, Any]:
    """What a converter writes into a GGUF file for this tokenizer; None removes a key."""
    model = json.loads(inner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    keys = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3 if i < 3 else 1 for i in range(len(tokens))],
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
        "add_bos_token": False,
        **changes,
    }
    metadata = {f"tokenizer.ggml.{key}": v for key, v in keys.items() if v is not None}
    template = {"tokenizer.chat_template": "{{ messages }}"}
    sizes = {"general.architecture": "llama", "llama.context_length": 8192}
    return {**metadata, **template, **sizes}


INNER = trained()


def opened(metadata: dict[str, Any]) -> tokenizer.Tokenizer:
    return tokenizer.parse(build_text_files(metadata).tokenizer_json.encode())


def test_the_rebuilt_tokenizer_gives_the_ids_of_the_original() -> None:
    rebuilt = opened(metadata_of(INNER))
    for text in TEXTS:
        assert rebuilt.encode(text) == INNER.encode(text, add_special_tokens=False).ids, text
        assert rebuilt.decode(rebuilt.encode(text, special=False)) == text


def test_strings_may_come_as_bytes() -> None:
    plain = metadata_of(INNER)
    raw = [token.encode() for token in plain["tokenizer.ggml.tokens"]]
    assert build_text_files({**plain, "tokenizer.ggml.tokens": raw}) == build_text_files(plain)


def test_the_companion_files_name_the_special_tokens() -> None:
    files = build_text_files(metadata_of(INNER))
    assert files.chat_template == files.tokenizer_config["chat_template"] == "{{ messages }}"
    expected = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "model_max_length": 8192,
        "add_bos_token": False,
    }
    assert expected.items() <= files.tokenizer_config.items()
    assert files.generation_config == {"eos_token_id": [2, 0], "bos_token_id": 1, "pad_token_id": 2}
    assert generation.parse(files.generation_config).eos_token_ids == {0, 2}


def test_harmony_parts_do_not_end_the_answer() -> None:
    inner = trained()
    inner.add_special_tokens(["<|end|>", "<|return|>", "<|call|>"])
    metadata = metadata_of(inner)
    tokens = metadata["tokenizer.ggml.tokens"]
    start = len(tokens)
    tokens += ["<|end|>", "<|return|>", "<|call|>"]
    metadata["tokenizer.ggml.token_type"] += [3, 3, 3]
    ends = build_text_files(metadata).generation_config["eos_token_id"]
    assert ends == [2, 0, start + 1, start + 2]


def test_a_name_that_ends_turns_counts_only_as_a_control_token() -> None:
    metadata = metadata_of(INNER)
    metadata["tokenizer.ggml.token_type"][0] = 1
    assert build_text_files(metadata).generation_config["eos_token_id"] == [2]


def test_bos_and_eos_are_added_around_a_prompt_when_the_file_says_so() -> None:
    rebuilt = opened(metadata_of(INNER, add_bos_token=True, add_eos_token=True))
    plain = rebuilt.encode("Hello")
    assert rebuilt.encode("Hello", wrap=True) == [1, *plain, 2]


def test_a_family_may_expect_bos_by_itself() -> None:
    rebuilt = opened(metadata_of(INNER, pre="llama-bpe", add_bos_token=None))
    assert rebuilt.encode("Hello", wrap=True)[0] == 1


def test_user_defined_tokens_are_found_whole_and_shown() -> None:
    metadata = metadata_of(INNER)
    metadata["tokenizer.ggml.tokens"].append("<tool_call>")
    metadata["tokenizer.ggml.token_type"].append(4)
    rebuilt = opened(metadata)
    (token_id,) = rebuilt.encode("<tool_call>", special=False)
    assert token_id == len(metadata["tokenizer.ggml.tokens"]) - 1
    assert rebuilt.decode([token_id]) == "<tool_call>"


def test_unused_and_empty_tokens_keep_their_place() -> None:
    metadata = metadata_of(INNER)
    count = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] += ["[PAD0]", ""]
    metadata["tokenizer.ggml.token_type"] += [5, 5]
    rebuilt = opened(metadata)
    assert rebuilt.vocab_size == count + 2
    assert count not in rebuilt.encode("[PAD0]")
    assert rebuilt.token_id(f"[EMPTY_{count + 1}]") == count + 1


@pytest.mark.parametrize("pre", FAMILIES)
def test_every_family_cuts_text_without_losing_any(pre: str) -> None:
    rebuilt = opened(metadata_of(INNER, pre=pre))
    normalizer = FAMILIES[pre].normalizer
    for text in TEXTS:
        kept = normalizers.NFC().normalize_str(text) if normalizer else text
        assert rebuilt.decode(rebuilt.encode(text, special=False)) == kept, text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "It's 1234  x", ["It", "'s", "Ġ1234", "Ġ", "Ġx"]),
        ("smollm", "a 12", ["a", "Ġ", "1", "2"]),
        ("llama-bpe", "1234567 DON'T\n\n", ["123", "456", "7", "ĠDON", "'T", "ĊĊ"]),
        ("qwen2", "12.5\u0300", ["1", "2", ".", "5", "ÌĢ"]),
        ("gpt-4o", "camelCase's/", ["camel", "Case's", "/"]),
        ("deepseek-v3", "a1234漢字", ["a", "123", "4", "æ¼¢åŃĹ"]),
        ("falcon", "a 1234!?", ["a", "Ġ", "123", "4", "!?"]),
    ],
)
def test_families_cut_words_where_their_makers_do(pre: str, text: str, words: list[str]) -> None:
    steps = json.loads(build_text_files(metadata_of(INNER, pre=pre)).tokenizer_json)
    blank = {**steps, "normalizer": None, "post_processor": None}
    inner = HuggingFaceTokenizer.from_str(json.dumps(blank))
    found = [word for word, _ in inner.pre_tokenizer.pre_tokenize_str(text)]
    assert found == words


@pytest.mark.parametrize("pre", ["kimi-k2", "default", "", None])
def test_an_unknown_pre_tokenizer_is_refused_by_name(pre: str | None) -> None:
    with pytest.raises(Incompatible, match=f"pre-tokenizer {pre!r} is not known"):
        build_text_files(metadata_of(INNER, pre=pre))


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "gemma4"])
def test_another_kind_of_vocabulary_is_refused_by_name(kind: str) -> None:
    with pytest.raises(Incompatible, match=repr(kind)):
        build_text_files(metadata_of(INNER, model=kind))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": None}, "no vocabulary"),
        ({"model": 7}, "must be text"),
        ({"tokens": None}, "tokens must be an array"),
        ({"tokens": "abc"}, "tokens must be an array"),
        ({"tokens": []}, "has 0 entries"),
        ({"tokens": ["a", "b", "a"], "token_type": None}, "holds 'a' twice"),
        ({"tokens": [b"\xff\xfe"]}, "not UTF-8"),
        ({"tokens": ["\ud800"]}, "not UTF-8"),
        ({"tokens": [1, 2]}, "must be text, got int"),
        ({"token_type": [1, 1]}, "token_type has 2 entries for 600 tokens"),
        ({"token_type": ["x"] * 600}, "whole numbers, got 'x'"),
        ({"merges": None}, "merges must be an array"),
        ({"merges": ["a  b"]}, "merge 0"),
        ({"merges": ["nospace"]}, "merge 0"),
        ({"merges": ["a nothere"]}, "merge 0"),
        ({"merges": ["Q Z"]}, "merge 0"),
        ({"bos_token_id": 600}, "bos_token_id is 600, but there are 600 tokens"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": "2"}, "whole numbers"),
        ({"add_bos_token": 1}, "must be true or false"),
    ],
)
def test_metadata_that_contradicts_itself_is_corrupt_in_one_line(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(Corrupt, match=says) as caught:
        build_text_files(metadata_of(INNER, **changes))
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, Incompatible)


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """A little vocabulary in the manner of Llama 2."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [2, 3, 3, *[6] * 256]
    words = ["▁h", "el", "▁hel", "lo", "▁hello", "▁w", "or", "▁▁", "▁▁▁", "▁", *"helowrd"]
    scores = [0.0] * len(pieces) + [-float(i) for i in range(7)] + [-1e9] * 3
    scores += [-20.0 - i for i in range(7)]
    keys = {
        "model": "llama",
        "pre": None,
        "merges": None,
        "tokens": pieces + words,
        "token_type": types + [1] * len(words),
        "scores": scores,
        "unknown_token_id": 0,
        "add_bos_token": True,
        **changes,
    }
    return metadata_of(INNER, **keys)


def test_a_sentencepiece_vocabulary_merges_best_scores_first() -> None:
    rebuilt = opened(sentencepiece())
    tokens = sentencepiece()["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in rebuilt.encode("hello wo\n")] == ["▁hello", "▁w", "o", "<0x0A>"]
    assert rebuilt.encode("hello", wrap=True)[0] == 1


@pytest.mark.parametrize("text", ["hello world", "  hello   world ", "é\n😀 <s>", "", "▁"])
def test_sentencepiece_text_survives_the_round_trip(text: str) -> None:
    rebuilt = opened(sentencepiece())
    assert rebuilt.decode(rebuilt.encode(text, special=False)) == text.replace("▁", " ")


def test_a_sentencepiece_vocabulary_without_the_leading_space() -> None:
    rebuilt = opened(sentencepiece(add_space_prefix=False))
    assert rebuilt.decode(rebuilt.encode(" hello")) == " hello"
    assert rebuilt.encode("hello") != rebuilt.encode(" hello")


@pytest.mark.parametrize("space", ["\u2581", " "])
def test_gemmas_runs_of_spaces_are_one_token_however_they_are_written(space: str) -> None:
    plain = sentencepiece(add_space_prefix=False)
    tokens, types = plain["tokenizer.ggml.tokens"], plain["tokenizer.ggml.token_type"]
    for run in ("\u2581" * 2, "\u2581" * 3):
        types[tokens.index(run)] = 4
        tokens[tokens.index(run)] = run.replace("\u2581", space)
    rebuilt = opened(plain)
    text = "hel   lo  w"
    found = [tokens[i] for i in rebuilt.encode(text)]
    assert found == ["h", "el", space * 3, "lo", space * 2, "w"]
    assert rebuilt.decode(rebuilt.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"scores": None}, Corrupt, "scores must be an array"),
        ({"scores": [0.0]}, Corrupt, "scores has 1 entries"),
        ({"scores": [float("nan")] * 276}, Corrupt, "infinite or undefined"),
        ({"scores": ["x"] * 276}, Corrupt, "not a number"),
        ({"scores": [0.0] * 276}, Incompatible, "share the score 0"),
        ({"tokens": ["a"], "token_type": [1]}, Corrupt, "token_id"),
    ],
)
def test_sentencepiece_scores_must_rank_the_merges(
    changes: dict[str, Any], kind: type[Corrupt], says: str
) -> None:
    with pytest.raises(kind, match=says):
        build_text_files(sentencepiece(**changes))


def test_phi3_is_refused_because_its_file_does_not_say_enough() -> None:
    with pytest.raises(Incompatible, match="phi3"):
        build_text_files({**sentencepiece(), "general.architecture": "phi3"})


def smollm2(path: Path) -> str:
    from gguf import GGUFReader

    metadata = {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    return build_text_files(metadata).tokenizer_json


@pytest.mark.weights
def test_smollm2s_published_tokenizer_is_rebuilt_byte_for_byte(smollm2_gguf: Path) -> None:
    content = json.loads(smollm2(smollm2_gguf))
    saved = json.dumps(content, indent=2, ensure_ascii=False).encode()
    assert hashlib.sha256(saved).hexdigest() == PUBLISHED_SHA256


@pytest.mark.weights
def test_smollm2_gives_hugging_faces_ids_on_the_torture_list(smollm2_gguf: Path) -> None:
    rebuilt = tokenizer.parse(smollm2(smollm2_gguf).encode())
    record = json.loads(TORTURE.read_text())
    assert record["tokenizer_json_sha256"] == PUBLISHED_SHA256
    for case in record["cases"]:
        assert rebuilt.encode(case["text"]) == case["ids"], case["text"]


@pytest.mark.weights
def test_smollm2_brings_ten_thousand_random_strings_back(smollm2_gguf: Path) -> None:
    rebuilt = tokenizer.parse(smollm2(smollm2_gguf).encode())
    # The published vocabulary itself lacks some bytes that begin characters, most of them of
    # planes without any: such text is lost by Hugging Face's tokenizer as well.
    known = {
        byte
        for byte, shown in enumerate(tokenizer.byte_alphabet())
        if rebuilt.token_id(shown) is not None
    }
    characters = [
        chr(code)
        for code in range(0x110000)
        if not 0xD800 <= code < 0xE000 and known.issuperset(chr(code).encode())
    ]
    assert len(characters) > 300_000
    source = random.Random(11)
    for _ in range(10_000):
        text = "".join(source.choices(characters, k=source.randint(0, 24)))
        assert rebuilt.decode(rebuilt.encode(text, special=False)) == text


@pytest.mark.weights
def test_smollm2_streams_any_ids_as_the_library_decodes_them(smollm2_gguf: Path) -> None:
    content = smollm2(smollm2_gguf)
    rebuilt = tokenizer.parse(content.encode())
    inner = HuggingFaceTokenizer.from_str(content)
    source = random.Random(12)
    for _ in range(500):
        ids = [source.randrange(rebuilt.vocab_size) for _ in range(source.randint(0, 40))]
        stream = rebuilt.stream()
        text = "".join([*map(stream.push, ids), stream.finish()])
        assert text == inner.decode(ids, skip_special_tokens=True)
