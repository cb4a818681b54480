"""A trimmed vocabulary: every text still encodes, and what is kept means what it meant."""

from __future__ import annotations

import json
import pathlib
import pydoc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TINY, UNTIED, Kind
from tokenizers import Tokenizer, decoders, models, normalizers

from edgellm.bundle import generation
from edgellm.bundle import tokenizer as text
from edgellm.bundle.manifest import Source
from edgellm.bundle.open import verify
from edgellm.errors import EdgellmError, Incompatible, NotFound, UsageError
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.shrink import Shrink, apply, bpe, scripts, vocabulary
from edgellm_export.shrink.vocabulary import TrimmedCheckpoint
from edgellm_export.weights import Blocks, to_float32

CORPUS = "the water in the year"
# Made of merges that CORPUS has no use for.
OTHER = "quick brown fox jumps over lazy dogs"
STRANGE = ["", "\x00\n\t ", "Ünïcödé – 漢字 🦙", "<|im_end|>", "the\nthe the  water 1234 😀a̐é"]


def trim(base: Checkpoint, corpus: str | None = CORPUS, names: tuple[str, ...] = ()) -> Any:
    """The trimmed checkpoint, its tokenizer, and the kept ids."""
    kept = vocabulary.choose(base, corpus, names)
    trimmed = TrimmedCheckpoint(base, kept)
    return trimmed, text.parse(trimmed.text_files().tokenizer_json.encode()), kept


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny.write_gguf(tmp_path_factory.mktemp("base") / "m.gguf"))


def test_only_what_the_corpus_needs_is_kept_and_ids_are_dense(base: Checkpoint) -> None:
    trimmed, words, kept = trim(base)
    assert len(kept) == words.vocab_size == trimmed.config["vocab_size"] < tiny.vocab_size()
    old = text.parse(base.text_files().tokenizer_json.encode())
    assert kept == sorted(kept)
    assert set(old.encode(CORPUS)) <= set(kept)
    assert not set(old.encode(OTHER)) <= set(kept)
    assert max(words.encode(CORPUS + OTHER + "".join(STRANGE))) < len(kept)


def test_a_text_of_kept_tokens_gets_the_same_tokens(base: Checkpoint) -> None:
    _, words, kept = trim(base)
    old = text.parse(base.text_files().tokenizer_json.encode())
    for piece in (CORPUS, "<|im_start|>the year<|im_end|>", "in the in water"):
        assert [kept[i] for i in words.encode(piece)] == old.encode(piece)


@given(st.text())
def test_any_text_comes_back_from_a_trimmed_tokenizer(said: str) -> None:
    words = text.parse(json.dumps(byte_level()).encode())
    assert words.decode(words.encode(said, special=False)) == said


def byte_level() -> dict[str, Any]:
    content = json.loads(tiny.tokenizer().to_str())
    ids = bpe.Vocabulary(content)
    kept = sorted(ids.closed(ids.always() | {ids.ids["the"]}))
    assert len(kept) < len(ids.ids)
    return bpe.trimmed(content, {old: new for new, old in enumerate(kept)})


@pytest.mark.parametrize("said", [*STRANGE, CORPUS, OTHER])
def test_strange_text_comes_back_too(base: Checkpoint, said: str) -> None:
    _, words, _ = trim(base)
    assert words.decode(words.encode(said, special=False)) == said


def test_rows_are_the_kept_ones_bit_for_bit(base: Checkpoint) -> None:
    trimmed, _, kept = trim(base)
    whole, rows = (one.weight("model.embed_tokens.weight") for one in (base, trimmed))
    assert isinstance(whole, Blocks)
    assert isinstance(rows, Blocks)
    assert np.array_equal(rows.packed, whole.packed[kept])
    assert np.array_equal(rows.scales, whole.scales[kept])
    other = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(to_float32(trimmed.weight(other)), to_float32(base.weight(other)))


@pytest.mark.parametrize("sizes", [TINY, UNTIED])
@pytest.mark.parametrize("source", ["gguf", "folder"])
def test_logits_of_kept_tokens_are_what_they_were(
    tmp_path: Path, sizes: tiny.Sizes, source: str
) -> None:
    write = {"gguf": tiny.write_gguf, "folder": tiny.write_folder}[source]
    whole = open_checkpoint(write(tmp_path / "m", sizes))
    trimmed, words, kept = trim(whole)
    ids = words.encode(CORPUS)
    found = tiny.logits(tiny.build(trimmed, "exact", tmp_path / "trimmed"), ids)
    model = tiny.build(whole, "exact", tmp_path / "whole")
    wanted = tiny.logits(model, [kept[i] for i in ids])[:, kept]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_every_id_in_the_files_is_renamed(tmp_path: Path) -> None:
    # END_OF_TEXT is token 0: behind 100 tokens that go, an id that is not renamed would show.
    content = json.loads(tiny.tokenizer().to_str())
    folder = tiny.write_folder(tmp_path / "m")
    last = tiny.vocab_size() - 1
    settings = {"bos_token_id": last, "eos_token_id": [2, last], "pad_token_id": 0}
    for name in ("config.json", "generation_config.json"):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, **settings, "suppress_tokens": [last]}))
    name_of_last = next(token for token, i in content["model"]["vocab"].items() if i == last)
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name_of_last, "type_id": 0}}, SEQUENCE],
        "pair": [SEQUENCE, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name_of_last: {"id": name_of_last, "ids": [last], "tokens": [name_of_last]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {"added_tokens_decoder": {"2": {"content": tiny.END_OF_TURN, "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **added}))
    trimmed, words, kept = trim(open_checkpoint(folder))
    new = len(kept) - 1
    assert kept[new] == last
    assert new < last
    files = trimmed.text_files()
    for found in (trimmed.config, files.generation_config):
        assert (found["bos_token_id"], found["eos_token_id"]) == (new, [2, new])
        assert (found["pad_token_id"], found["suppress_tokens"]) == (0, [new])
    assert words.encode("the", wrap=True)[0] == new
    assert files.tokenizer_config["added_tokens_decoder"]["2"]["content"] == tiny.END_OF_TURN


SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}


def test_words_of_the_chat_template_are_kept() -> None:
    template = "{{ 'You are\\nhelpful' }}{% if a == \"b\" %}Then{% x %}"
    found = list(vocabulary.template_words(template))
    assert {"You are\nhelpful", "b", "Then"} <= set(found)


def sentencepiece() -> dict[str, Any]:
    """As Llama 2 has it: characters, merges, and a token for every byte."""
    letters = "▁thewarñ漢"
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("w", "a"), ("t", "e"), ("te", "r")]
    ids = {token: i for i, token in enumerate([*tokens, *(a + b for a, b in merges)])}
    inner = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    content: dict[str, Any] = json.loads(inner.to_str())
    return content


@pytest.mark.parametrize("said", ["the water", "ñ 漢 the", "ter ar wa 🦙 été"])
def test_byte_fallback_takes_over_for_characters_that_go(said: str) -> None:
    content = sentencepiece()
    ids = bpe.Vocabulary(content)
    kept = sorted(ids.closed(ids.always() | {ids.ids["▁the"]}))
    kept_characters = {token for token in ids.ids if ids.ids[token] in kept and len(token) == 1}
    assert kept_characters == set("▁the")
    new = bpe.trimmed(content, {old: i for i, old in enumerate(kept)})
    words = text.parse(json.dumps(new).encode())
    assert words.decode(words.encode(said)) == said
    assert set(map(tuple, new["model"]["merges"])) == {("t", "h"), ("th", "e"), ("▁", "the")}


def test_a_script_keeps_its_words_and_every_sign(base: Checkpoint) -> None:
    _, words, _ = trim(base, None, ("greek",))
    _, latin, kept = trim(base, None, ("latin",))
    assert latin.vocab_size == len(kept) == tiny.vocab_size()
    assert words.vocab_size < latin.vocab_size
    fits = scripts.written_in(["latin", "han"])
    assert fits("naïve é́ 12 – 😀 漢字")
    assert not fits("привет")
    assert not fits("ひらがな")


def test_whole_words_are_kept_although_no_merge_makes_them() -> None:
    content = json.loads(tiny.tokenizer().to_str())
    content["model"]["vocab"]["zzzz"] = tiny.vocab_size()
    assert not bpe.Vocabulary(content).reachable("zzzz")
    content["model"]["ignore_merges"] = True
    assert bpe.Vocabulary(content).reachable("zzzz")


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        (Shrink(keep_scripts=("klingon",)), UsageError, "no letter is written in 'klingon'"),
        (Shrink(keep_vocab=Path("nowhere.txt")), NotFound, "cannot read nowhere.txt"),
    ],
)
def test_a_wrong_wish_is_named(
    base: Checkpoint, wanted: Shrink, error: type[EdgellmError], words: str
) -> None:
    with pytest.raises(error, match=words):
        apply(base, wanted, print)


def test_other_tokenizers_are_refused() -> None:
    content = json.loads(tiny.tokenizer().to_str())
    for change in ({"type": "WordPiece"}, {"end_of_word_suffix": "</w>"}):
        with pytest.raises(Incompatible, match="cannot be trimmed"):
            bpe.Vocabulary({**content, "model": {**content["model"], **change}})
    with pytest.raises(Incompatible, match="post-processor 'Odd'"):
        bpe.trimmed({**content, "post_processor": {"type": "Odd"}}, dict(enumerate(range(300))))


def test_a_trimmed_bundle_is_published_and_opens(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "out"
    corpus.write_text(CORPUS)
    out.mkdir()
    source = tiny.write_gguf(tmp_path / "m.gguf", UNTIED, Kind.Q4_1)
    lines: list[str] = []
    shrink = Shrink(keep_vocab=corpus)
    made = export_bundle(Job(source, None, Source("x"), "x", shrink=shrink), out, lines.append)
    assert made.self_check["exact_tensors"] == made.self_check["tensors"]
    found = made.recipe["vocabulary"]
    assert found["kept"] == made.shape.vocab_size < found["of"] == tiny.vocab_size()
    assert f"{found['kept']} of {found['of']} tokens are kept" in "\n".join(lines)
    assert verify(out).shape.vocab_size == found["kept"]
    words = text.read(out)
    ends = [words.token_id(token) for token in (tiny.END_OF_TEXT, tiny.END_OF_TURN)]
    assert sorted(generation.read(out).eos_token_ids) == ends


@pytest.mark.weights
def test_the_real_model_trimmed_to_english_says_the_same(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    whole = open_checkpoint(smollm2_gguf)
    said = "The quick brown fox jumps over the lazy dog. Why is the sky blue?"
    corpus = f"{said} {pydoc.plain(pydoc.render_doc(pathlib))}"
    trimmed, words, kept = trim(whole, corpus)
    assert len(kept) < 0.1 * whole.config["vocab_size"]
    old = text.parse(whole.text_files().tokenizer_json.encode())
    ids = words.encode(said)
    assert [kept[i] for i in ids] == old.encode(said)
    for strange in (*STRANGE, "Zażółć gęślą jaźń, 你好"):
        assert words.decode(words.encode(strange, special=False)) == strange
    found = tiny.logits(tiny.build(trimmed, "exact", tmp_path / "trimmed"), ids)
    model = tiny.build(whole, "exact", tmp_path / "whole")
    wanted = tiny.logits(model, old.encode(said))[:, kept]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
