from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from edgellm.bundle import tokenizer
from edgellm.bundle.tokenizer import Tokenizer
from edgellm.errors import Corrupt, Incompatible, NotFound, UsageError

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 2024, isn't it?",
    "Größe, naïve café, señor, Привет мир, γειά σου, 你好世界, 안녕하세요",
    "emoji 😀😃 family 👨‍👩‍👧 flags 🇩🇪🇯🇵 and hearts ❤️",
    "def f(x):\n    return x + 1\n",
]
UNCHANGED = settings(deadline=None, max_examples=200)


def byte_level() -> HuggingFaceTokenizer:
    inner = HuggingFaceTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|start|>", "<|end|>"],
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    return inner


def byte_fallback() -> HuggingFaceTokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    inner = HuggingFaceTokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return inner


def metaspace() -> HuggingFaceTokenizer:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("▁▁", -1.5), ("▁a", -2.0), ("b", -3.0), ("é", -4.0)]
    inner = HuggingFaceTokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<unk>"])
    return inner


INNERS = {make.__name__: make() for make in (byte_level, byte_fallback, metaspace)}
OPENED = {name: tokenizer.parse(inner.to_str().encode()) for name, inner in INNERS.items()}


def pushed(opened: Tokenizer, ids: list[int]) -> str:
    stream = opened.stream()
    return "".join([*(stream.push(token_id) for token_id in ids), stream.finish()])


@pytest.mark.parametrize("name", OPENED)
@given(data=st.data())
@UNCHANGED
def test_pushes_joined_are_the_decoded_text(name: str, data: st.DataObject) -> None:
    opened = OPENED[name]
    ids = data.draw(st.lists(st.integers(-1, opened.vocab_size + 2), max_size=30))
    assert pushed(opened, ids) == opened.decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
@given(data=st.data())
@UNCHANGED
def test_decoding_any_ids_equals_the_library(name: str, data: st.DataObject) -> None:
    opened = OPENED[name]
    ids = data.draw(st.lists(st.integers(0, opened.vocab_size - 1), max_size=30))
    assert opened.decode(ids) == INNERS[name].decode(ids, skip_special_tokens=True)


@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="▁")))
@UNCHANGED
def test_byte_fallback_decodes_text_as_the_library_does(text: str) -> None:
    opened, inner = OPENED["byte_fallback"], INNERS["byte_fallback"]
    ids = opened.encode(text, special=False)
    assert opened.decode(ids) == inner.decode(ids, skip_special_tokens=True) == text


@given(text=st.text(alphabet=st.characters(codec="utf-8")))
@UNCHANGED
def test_byte_level_text_survives_the_round_trip(text: str) -> None:
    opened = OPENED["byte_level"]
    assert opened.decode(opened.encode(text, special=False)) == text


@given(text=st.text(alphabet=st.characters(codec="utf-8")))
@UNCHANGED
def test_bytes_of_tokens_joined_are_the_text(text: str) -> None:
    opened = OPENED["byte_level"]
    ids = opened.encode(text, special=False)
    assert b"".join(map(opened.token_bytes, ids)) == text.encode()


def test_an_emoji_of_several_tokens_appears_once_and_whole() -> None:
    opened = OPENED["byte_fallback"]
    ids = opened.encode("a👩")
    stream = opened.stream()
    assert [stream.push(i) for i in ids] == ["a", "", "", "", "👩"]
    assert stream.finish() == ""


def test_an_answer_cut_inside_a_character_ends_with_one_replacement() -> None:
    opened = OPENED["byte_fallback"]
    ids = opened.encode("a👩")[:-1]
    stream = opened.stream()
    assert "".join(map(stream.push, ids)) == "a"
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_special_tokens_are_never_text() -> None:
    opened = OPENED["byte_level"]
    end = opened.token_id("<|end|>")
    assert end is not None
    assert end in opened.special_ids
    assert opened.token_bytes(end) == b""
    assert opened.decode([*opened.encode("a"), end, *opened.encode("b")]) == "ab"


def test_special_strings_become_special_ids_only_when_asked() -> None:
    opened = OPENED["byte_level"]
    end = opened.token_id("<|end|>")
    assert opened.encode("a<|end|>")[-1] == end
    plain = opened.encode("a<|end|>", special=False)
    assert end not in plain
    assert opened.decode(plain) == "a<|end|>"


def test_tokens_a_user_added_are_text_in_both_modes() -> None:
    opened = OPENED["byte_level"]
    tool = opened.token_id("<tool call>")
    assert opened.encode("<tool call>", special=False) == opened.encode("<tool call>") == [tool]
    assert opened.decode([tool or 0]) == "<tool call>"


def test_text_that_continues_keeps_its_leading_space() -> None:
    opened = OPENED["byte_fallback"]
    stream = opened.stream(continuing=True)
    assert [stream.push(i) for i in opened.encode("a a")] == [" a", " a"]
    assert opened.decode(opened.encode("a a")) == "a a"


def test_wrapping_adds_what_the_model_expects_around_a_prompt() -> None:
    from tokenizers import processors

    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 0)]
    )
    opened = tokenizer.parse(inner.to_str().encode())
    assert opened.encode("a", wrap=True) == [0, *opened.encode("a")]


def test_training_time_limits_do_not_cut_or_pad_a_prompt() -> None:
    inner = byte_level()
    inner.enable_truncation(2)
    inner.enable_padding(length=64)
    opened = tokenizer.parse(inner.to_str().encode())
    text = "The quick brown fox jumps over the lazy dog."
    assert opened.decode(opened.encode(text)) == text


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(UsageError, match=r"not valid Unicode at character 2 \('\\ud83d'\)"):
        OPENED["byte_level"].encode("ab\ud83d")


def saved(folder: Path, change: dict[str, Any]) -> Path:
    content = {**json.loads(INNERS["byte_level"].to_str()), **change}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_a_bundle_folder_opens(tmp_path: Path) -> None:
    opened = tokenizer.read(saved(tmp_path, {}))
    assert opened.decode(opened.encode("hello")) == "hello"


def test_a_folder_without_a_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no tokenizer\.json"):
        tokenizer.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"[" * 100_000],
)
def test_a_damaged_file_is_corrupt_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(Corrupt) as caught:
        tokenizer.read(tmp_path)
    assert "\n" not in str(caught.value)
    assert "tokenizer.json" in str(caught.value)


def test_a_lying_pre_tokenizer_is_corrupt(tmp_path: Path) -> None:
    pattern = {"Regex": "("}
    step = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    with pytest.raises(Corrupt, match="can be used"):
        tokenizer.read(saved(tmp_path, {"pre_tokenizer": step}))


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "continuing\\u005fsubword_prefix"])
def test_a_prefix_that_would_abort_the_process_is_corrupt(tmp_path: Path, key: str) -> None:
    raw = INNERS["byte_level"].to_str().replace('"continuing_subword_prefix":null', f'"{key}":"#"')
    (tmp_path / "tokenizer.json").write_text(raw)
    with pytest.raises(Corrupt, match="continuing_subword_prefix"):
        tokenizer.read(tmp_path)


def test_a_vocabulary_without_a_word_for_the_unknown_says_so(tmp_path: Path) -> None:
    content = json.loads(INNERS["metaspace"].to_str())
    content["model"]["unk_id"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(Corrupt, match="cannot encode this text"):
        tokenizer.read(tmp_path).encode("z")


def test_threads_may_mix_both_ways_of_encoding() -> None:
    opened = OPENED["byte_level"]
    text = "a<|end|>" * 200
    wanted = {special: opened.encode(text, special=special) for special in (True, False)}
    with ThreadPoolExecutor(4) as pool:
        for special, ids in pool.map(
            lambda i: (bool(i % 2), opened.encode(text, special=bool(i % 2))), range(200)
        ):
            assert ids == wanted[special]


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(tokenizer.FILE_LIMIT_BYTES + 1)
    with pytest.raises(Corrupt, match="larger than"):
        tokenizer.read(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "CTC", **{"pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}},
    ],
)
def test_a_vocabulary_that_cannot_stream_still_encodes(tmp_path: Path, decoder: Any) -> None:
    opened = tokenizer.read(saved(tmp_path, {"decoder": decoder}))
    assert opened.encode("hello")
    with pytest.raises(Incompatible, match="cannot be streamed"):
        opened.decode([5])
