"""2 bits: every shape of grid and every place in the graph computes what the blocks mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny

from edgellm.bundle.manifest import Source
from edgellm.errors import Incompatible, UsageError
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.quantize import treat
from edgellm_export.quantize.calibrate import Calibration
from edgellm_export.recipe import Integer, Recipe, Treatment, recipe
from edgellm_export.weights import Blocks, Dense, pack, unpack

SIZES = tiny.Sizes(hidden=64, inner=128, heads=4, kv_heads=2, width=16)


def test_integers_of_two_bits_come_back_from_their_bytes() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (6, 128), np.uint8)
    packed = pack(codes, 2, 64)
    assert packed.shape == (6, 2, 16)
    assert np.array_equal(unpack(packed, 2).reshape(6, 128), codes)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("where", ["layers", "head", "both"])
def test_a_bundle_of_two_bits_passes_its_self_check(
    tmp_path: Path, where: str, block: int, asymmetric: bool
) -> None:
    two, eight = Integer(2, block, asymmetric), Integer(8, 32, False)
    linear: Treatment = eight if where == "head" else two
    head: Treatment = eight if where == "layers" else two
    source = tiny.write_folder(tmp_path / "source", SIZES)
    (tmp_path / "out").mkdir()
    job = Job(source, Recipe("two", linear, head, "_q4"), Source("x"), "x")
    report = export_bundle(job, tmp_path / "out").self_check
    assert report["logits_error_float32"] < 1e-5
    assert report["portable_error"] < 1e-5
    assert report["kl_int8_activations"] < 0.01
    assert 0.1 < report["weights_rms_error"] < 0.6


def test_calibrated_two_bits_are_closer_to_the_float_weights(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", SIZES)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog in the year of the water\n" * 200)
    found = {}
    for name, calibration in (
        ("plain", None),
        ("calibrated", Calibration(tmp_path / "cache", text, tokens=2048)),
    ):
        out = tmp_path / name
        out.mkdir()
        job = Job(source, recipe("int2"), Source("x"), "x", calibration=calibration)
        made = export_bundle(job, out)
        found[name] = made.self_check["text_kl"]
        assert ("calibrated (GPTQ)" in made.recipe["linear"]) == (name == "calibrated")
    # On the text that it was calibrated on; the plain one on the sample.
    assert found["calibrated"] < 0.8 * found["plain"]


def test_blocks_of_sixteen_are_refused_in_a_recipe_and_never_chosen() -> None:
    with pytest.raises(UsageError, match="2 bits need block_size 32 or more, got 16"):
        Integer(2, 16, True)
    weight = np.ones((4, 96), np.float32)
    dense = Dense(weight.shape, "float32", lambda: weight)
    found = treat(dense, Integer(2, 64, True))
    assert isinstance(found, Blocks)
    assert found.block_size == 32
    narrow = Dense((4, 48), "float32", lambda: weight[:, :48])
    with pytest.raises(Incompatible, match=r"48 is no multiple of 32.* --precision int4"):
        treat(narrow, Integer(2, 64, True))
