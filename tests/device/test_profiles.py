from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgellm.device import profiles
from edgellm.errors import Corrupt, NotFound

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def raw() -> dict[str, Any]:
    """A sound profile, decoded, for a test to damage."""
    with (ROOT / "devices" / "rpi5-8gb.toml").open("rb") as file:
        return tomllib.load(file)


def put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    table: Any = raw
    *way, last = dotted.split(".")
    for step in way:
        table = table[int(step) if step.isdigit() else step]
    if value is None:
        del table[last]
    else:
        table[last] = value


def test_every_shipped_profile_is_sound() -> None:
    found = {profile.id for profile in profiles.all_profiles()}
    assert found == {path.stem for path in (ROOT / "devices").glob("*.toml")}
    assert {"x86-laptop-16gb", "rpi5-8gb", "jetson-orin-nano-8gb"} <= found


def test_a_profile_has_units_and_evidence() -> None:
    pi = profiles.profile("rpi5-8gb")
    assert pi.memory.sustained_gb_s == pytest.approx(11.4, abs=0.1)
    assert pi.source("memory.bandwidth_gb_s").kind == "third-party"
    assert pi.weakest_evidence(["cpu.cores", "memory.bandwidth_gb_s"]) == "third-party"
    assert pi.weakest_evidence(["cpu.cores", "memory.usable_mb"]) == "guess"


def test_a_mistyped_name_gets_a_suggestion() -> None:
    with pytest.raises(NotFound, match=r"no device profile 'rpi-5'; did you mean rpi5-8gb"):
        profiles.profile("rpi-5")


def test_an_unlike_name_gets_the_list() -> None:
    with pytest.raises(NotFound, match=r"known are .*jetson-orin-nano-8gb"):
        profiles.profile("zzzz")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("memory.total_mb", None, "'memory.total_mb' is missing"),
        ("memory.total_mb", "8 GB", "'memory.total_mb' must be a positive number"),
        ("memory.total_mb", float("nan"), "'memory.total_mb' must be a positive number"),
        ("memory.total_mb", True, "'memory.total_mb' must be a positive number"),
        ("memory.usable_mb", 9000, "'memory.usable_mb' is above"),
        ("memory.bandwidth_efficiency", 1.2, "'memory.bandwidth_efficiency' is a share"),
        ("memory.unified", 1, "'memory.unified' must be bool"),
        ("memory.speed", 3, "unknown field 'memory.speed'"),
        ("memory", 3, "'memory' must be a table"),
        ("cpu.cores", 4.0, "'cpu.cores' must be a positive whole number"),
        ("cpu.features", ["a", 1], "'cpu.features' must be a list of strings"),
        ("kind", "toaster", "'kind' must be one of"),
        ("colour", "red", "unknown field 'colour'"),
        ("accelerator", [], "'accelerator' must be one"),
        ("accelerator.0.confidence", "sure", r"'accelerator\[0\].confidence' must be one of"),
        ("source.0.kind", "rumour", r"'source\[0\].kind' must be one of"),
        ("source.0.url", None, r"'source\[0\].url' is missing"),
        ("source.1.note", None, r"'source\[1\].note' is missing"),
        ("source.0.checked", "yesterday", r"'source\[0\].checked' must be a date"),
        ("source.0.fields", ["memory.colour"], "names 'memory.colour'"),
        ("source.0.fields", ["memory.usable_mb"], "'memory.usable_mb' has two sources"),
        ("source.0.fields", [], r"'memory.total_mb' has no \[\[source\]\]"),
    ],
)
def test_a_damaged_profile_is_refused_by_field(
    raw: dict[str, Any], field: str, value: Any, complaint: str
) -> None:
    put(raw, field, value)
    with pytest.raises(Corrupt, match=complaint):
        profiles.parse(raw)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"id = ", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"id = 'x'", "broken.toml: field 'name' is missing"),
        (b"#" * (profiles.FILE_LIMIT_BYTES + 1), "is larger than"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: bytes, complaint: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(text)
    with pytest.raises(Corrupt, match=complaint) as caught:
        profiles.read(path)
    assert str(path) in str(caught.value)


def test_a_file_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_bytes((ROOT / "devices" / "rpi5-8gb.toml").read_bytes())
    with pytest.raises(Corrupt, match="id is 'rpi5-8gb', but the file's name says 'other'"):
        profiles.read(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot read the device profile"):
        profiles.read(tmp_path / "none.toml")
