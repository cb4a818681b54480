"""Recipes are files: those that ship are sound, and a wrong one of the user's is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models as tiny

from edgellm.bundle.manifest import Source
from edgellm.errors import UsageError
from edgellm_export import recipe as recipes
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import Float, Integer, Keep, Limits, names, recipe

MINE = """
name = "mine"
version = 3
suffix = "_q4"

[linear]
kind = "integer"
bits = 4
block_size = 32
asymmetric = false

[head]
kind = "float"
dtype = "float16"

[matrices."layers.0.down"]
kind = "integer"
bits = 8
block_size = 32
asymmetric = true

[limits]
max_kl = 0.5
min_top1 = 1
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def test_the_recipes_of_the_contract_ship() -> None:
    wanted = {"exact", "compact", "int2", "int4", "int4_block128", "int8", "fp16", "fp32", "q4f16"}
    assert set(names()) == wanted


@pytest.mark.parametrize("name", names())
def test_a_recipe_that_ships_is_called_as_its_file_and_has_limits(name: str) -> None:
    found = recipe(name)
    assert found.name == name
    assert found.version >= 1
    assert 0 < found.limits.max_kl < 3
    assert found.limits.min_top1 >= 0.3


def test_fewer_bits_may_lose_more() -> None:
    order = ["fp32", "fp16", "int8", "compact", "int4", "int4_block128", "int2"]
    limits = [recipe(name).limits for name in order]
    assert limits == sorted(limits, key=lambda limit: limit.max_kl)
    assert limits == sorted(limits, key=lambda limit: -limit.min_top1)


def test_a_file_says_what_becomes_of_each_weight(mine: Path) -> None:
    found = recipe(str(mine))
    assert (found.name, found.version, found.suffix, found.accuracy_level) == ("mine", 3, "_q4", 4)
    assert found.linear == Integer(4, 32, False)
    assert found.head == Float("float16")
    assert found.matrices == {"layers.0.down": Integer(8, 32, True)}
    assert found.limits == Limits(0.5, 1.0)


def test_a_file_of_the_users_is_followed_and_recorded(mine: Path, tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    out = tmp_path / "out"
    out.mkdir()
    made = export_bundle(Job(source, recipe(str(mine)), Source("x"), "x"), out)
    assert made.recipe == {
        "name": "mine",
        "version": 3,
        "linear": "int4, symmetric blocks of 32, round to nearest",
        "head": "float16",
        "accuracy_level": 4,
        "limits": {"max_kl": 0.5, "min_top1": 1.0},
        "matrices": {"layers.0.down": "int8, asymmetric blocks of 32, round to nearest"},
    }
    assert (out / "onnx/model_q4.onnx_data").is_file()


def test_a_matrix_that_the_model_has_not_is_named(mine: Path, tmp_path: Path) -> None:
    mine.write_text(MINE.replace("layers.0.down", "layers.7.down"))
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"recipe mine: matrices\.layers\.7\.down .* embed_tokens"):
        export_bundle(Job(source, recipe(str(mine)), Source("x"), "x"), tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bits = 4", "bits = 3", "linear.bits = 3 must be one of 2, 4, 8"),
        ("bits = 4", "bits = 4.0", "linear.bits = 4.0 must be one of 2, 4, 8"),
        ("bits = 4", "", "linear.bits is missing"),
        (
            "bits = 4\nblock_size = 32",
            "bits = 2\nblock_size = 16",
            "linear: 2 bits need block_size",
        ),
        ("block_size = 32", "block_size = 48", "linear: block_size must be 16, 32"),
        ("block_size = 32", 'block_size = "32"', "linear.block_size = '32' must be a whole number"),
        ("asymmetric = false", "asymmetric = 0", "linear.asymmetric = 0 must be true or false"),
        ("asymmetric = false", "asymetric = false", "linear.asymetric = False is not known"),
        ("asymmetric = false", 'method = "gptq"', "linear.method = 'gptq' is not known"),
        ('kind = "integer"', 'kind = "int"', "linear.kind = 'int' must be one of keep, float"),
        ('dtype = "float16"', 'dtype = "half"', "head.dtype = 'half' must be one of float16"),
        ("[head]", "[tail]", "tail = {'kind': 'float', 'dtype': 'float16'} is not known"),
        ('name = "mine"', 'name = "../x"', "name must be lower-case"),
        ('name = "mine"', "name = 1", "name = 1 must be text"),
        ('suffix = "_q4"', 'suffix = "/etc"', "suffix must be empty or like _q4, got '/etc'"),
        ("version = 3", "version = 0", "version must be 1 or more, got 0"),
        ("version = 3", "version = 3\naccuracy_level = 2", "accuracy_level must be 0 or 4, got 2"),
        ("max_kl = 0.5", "max_kl = -1", "limits: max_kl must be above 0, got -1"),
        ("max_kl = 0.5", "max_kl = nan", "limits.max_kl = nan must be a number"),
        ("min_top1 = 1", "min_top1 = 70", "limits: min_top1 must be between 0 and 1, got 70"),
        ("[limits]", "[other]", "other = {"),
        ("version = 3", "version =", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_key_and_value(
    mine: Path, old: str, new: str, said: str
) -> None:
    mine.write_text(MINE.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        recipe(str(mine))
    message = str(caught.value)
    assert message.startswith(str(mine))
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("table", ["linear", "head", "matrices", "limits"])
def test_what_should_be_a_table_and_is_none_is_named(mine: Path, table: str) -> None:
    mine.write_text(f"{table} = 5\n" + MINE.replace(f"[{table}", "[other", 1))
    with pytest.raises(UsageError, match=r"mine\.toml: "):
        recipe(str(mine))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (1 << 17), b"a = " + b"[" * 5000])
def test_what_is_no_recipe_is_one_line(mine: Path, content: bytes) -> None:
    mine.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        recipe(str(mine))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file"):
        recipe(str(tmp_path / "none.toml"))


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'int5'.*compact, exact, .*q4f16, or a file"):
        recipe("int5")


@pytest.mark.parametrize(
    ("given", "file"), [("int4", False), ("mine.toml", True), ("./mine", True), ("int4toml", False)]
)
def test_a_slash_or_the_ending_makes_it_a_path(given: str, file: bool) -> None:
    assert recipes.is_file(given) is file


def test_only_what_rounds_can_be_calibrated(mine: Path) -> None:
    found = recipe(str(mine)).calibrated()
    assert found.is_calibrated
    assert found.head == Float("float16")
    assert recipe("exact").linear == Keep()
    with pytest.raises(UsageError, match="rounds nothing"):
        recipe("exact").calibrated()
