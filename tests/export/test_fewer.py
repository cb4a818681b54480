"""Layers and neurons that are left out: what is exported is what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_architectures
import tiny_archs
import tiny_models as tiny
from tiny_adapters import write_adapter
from tiny_models import TINY, Kind

from edgellm.bundle.manifest import Source
from edgellm.errors import EdgellmError, Incompatible, UsageError
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.lora import LoraCheckpoint
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.pipeline import Job, export_bundle, silent
from edgellm_export.shrink import Shrink, apply, layers, measure, width
from edgellm_export.shrink.layers import FewerLayers
from edgellm_export.shrink.measure import Switched
from edgellm_export.weights import Blocks, to_float32

FOUR = tiny.Sizes(layers=4, seed=8)
IDS = np.random.default_rng(3).integers(3, tiny.vocab_size(), (2, 24))
DEEPER = {"num_hidden_layers": 4}
# Long enough for a few windows of calibration.
TEXT = "the quick brown fox jumps over the lazy dog in the year that the water was there\n" * 150

Write = Callable[[Path], Path]
WRITERS: dict[str, Write] = {
    "llama": lambda folder: tiny.write_folder(folder, FOUR),
    **{
        name: lambda folder, name=name: tiny_architectures.write_folder(folder, name, **DEEPER)
        for name in tiny_architectures.CONFIGS
    },
    **{
        str(config["model_type"]): lambda folder, config=config: tiny_archs.write(
            folder, {**config, **DEEPER}, "F32"
        )
        for config in (
            tiny_archs.GEMMA2,
            tiny_archs.GEMMA3,
            tiny_archs.PHI3,
            tiny_archs.QWEN3_MOE,
        )
    },
}


def switched(checkpoint: Checkpoint, folder: Path) -> Switched:
    folder.mkdir()
    return Switched(measure.imported(checkpoint, folder), IDS)


@pytest.mark.parametrize("name", WRITERS)
def test_a_layer_switched_off_is_a_layer_that_is_not_there(tmp_path: Path, name: str) -> None:
    """Also where layers differ: windows, rotary bases and missing positions move with them."""
    base = open_checkpoint(WRITERS[name](tmp_path / "source"))
    whole = switched(base, tmp_path / "whole")
    left = switched(FewerLayers(base, [0, 3]), tmp_path / "left")
    assert whole.layers == 4
    assert left.layers == 2
    kl = measure.divergence(whole.teacher, left.teacher)
    assert kl > 1e-4
    assert whole.divergence({1, 2}) == pytest.approx(kl, rel=1e-3)
    assert whole.divergence(()) == 0


def test_layers_that_do_nothing_go_first(tmp_path: Path) -> None:
    outputs = [f"model.layers.2.{part}.weight" for part in ("self_attn.o_proj", "mlp.down_proj")]
    idle = {name: np.zeros_like(tiny.weights(FOUR)[name]) for name in outputs}
    base = open_checkpoint(tiny.write_folder(tmp_path / "source", FOUR, changes=idle))
    model = switched(base, tmp_path / "whole")
    choice = layers.choose(model, 2, silent)
    assert choice.dropped[0] == 2
    assert choice.influence[2] == pytest.approx(0, abs=1e-6)
    assert choice.alone[2] == pytest.approx(0, abs=1e-6)
    assert min(choice.influence[:2] + choice.influence[3:]) > 1e-3
    # The second one is the best together with the first.
    others = {i: model.divergence({2, i}) for i in (0, 1, 3)}
    assert choice.dropped[1] == min(others, key=others.__getitem__)
    assert choice.kl == pytest.approx(min(others.values()))
    assert sorted([*choice.dropped, *choice.kept()]) == [0, 1, 2, 3]
    dropped = [line.split()[0] for line in choice.table() if line.endswith("dropped")]
    assert dropped == [str(i) for i in sorted(choice.dropped)]


def test_names_and_lists_by_layer_follow_their_layer(tmp_path: Path) -> None:
    base = open_checkpoint(WRITERS["smollm3"](tmp_path / "source"))
    left = FewerLayers(base, [1, 2])
    assert left.config["num_hidden_layers"] == 2
    assert left.config["no_rope_layers"] == [0, 1]
    a, b = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert np.array_equal(to_float32(left.weight(a)), to_float32(base.weight(b)))
    assert not any(".layers.2." in name for name in left.names())
    assert len(left.names()) == len(base.names()) - 2 * 9


def export(
    source: Path, folder: Path, shrink: Shrink, **more: Any
) -> tuple[Mapping[str, Any], list[str]]:
    """The recipe in the manifest, and what was said; the self-check has passed."""
    folder.mkdir()
    said: list[str] = []
    job = Job(source, None, Source("x"), "x", shrink=shrink, **more)
    made = export_bundle(job, folder, said.append)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == (
        made.shape.num_hidden_layers
    )
    return made.recipe, said


def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_the_manifest_says_which_layers_went_and_what_it_cost(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", FOUR)
    shrink = Shrink(drop_layers=1, text=text(tmp_path))
    recipe, said = export(source, tmp_path / "out", shrink)
    found = recipe["layers"]
    assert len(found["dropped"]) == 1
    assert found["kl"] == min(found["kl_alone"]) > 0
    assert "layer  influence  KL alone" in said
    assert "3 of 4 layers are kept" in said


def test_without_a_text_the_model_writes_its_own(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "m", FOUR)
    recipe, _ = export(source, tmp_path / "out", Shrink(drop_layers=2))
    assert len(recipe["layers"]["dropped"]) == 2


def test_the_neurons_that_say_most_stay_and_take_over() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 48)).astype(np.float32)
    x[:, 32:] = 0.01 * x[:, 32:] + x[:, :16]  # nothing that the first 16 do not say
    down = rng.standard_normal((24, 48)).astype(np.float32)
    down[:, 32:] *= 0.1
    found = width.fitted(down, x.T @ x, 32)
    assert found.kept.tolist() == list(range(32))
    wanted = x @ down.T
    cut = np.square(wanted - x[:, found.kept] @ down[:, found.kept].T).sum()
    fitted = np.square(wanted - x[:, found.kept] @ found.down.T).sum()
    assert fitted < 0.02 * cut


@pytest.mark.parametrize("source", ["gguf", "folder"])
def test_a_narrow_model_keeps_blocks_where_it_can(tmp_path: Path, source: str) -> None:
    write = {"gguf": tiny.write_gguf, "folder": tiny.write_folder}[source]
    path = write(tmp_path / "m", FOUR)
    shrink = Shrink(mlp_width=64, text=text(tmp_path))
    base = open_checkpoint(path)
    left = apply(base, shrink, silent).checkpoint
    up, down = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "down"))
    assert left.weight(up).shape == (64, 64)
    assert left.weight(down).shape == (64, 64)
    rows = {row.tobytes() for row in to_float32(base.weight(up))}
    assert all(row.tobytes() in rows for row in to_float32(left.weight(up)))
    assert isinstance(left.weight(up), Blocks) == (source == "gguf")
    recipe, said = export(path, tmp_path / "out", shrink)
    assert recipe["mlp"]["width"] == 64
    assert recipe["mlp"]["of"] == 96
    assert recipe["mlp"]["kl"] > 0
    told = any("4 changed layers become int8" in line for line in said)
    assert told == (source == "gguf")


def test_everything_at_once(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", FOUR, Kind.Q8_0)
    said = text(tmp_path)
    shrink = Shrink(said, (), drop_layers=1, mlp_width=64, text=said)
    recipe, _ = export(source, tmp_path / "out", shrink)
    assert set(recipe) >= {"layers", "mlp", "vocabulary"}


def test_a_merged_adapter_moves_with_its_layer(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", FOUR)
    base = open_checkpoint(source)
    adapter = write_adapter(tmp_path / "adapter", base, ["mlp.up_proj"])
    left = FewerLayers(LoraCheckpoint(base, adapter), [1, 3])
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    assert sorted(left.instead()) == names
    merged = LoraCheckpoint(base, adapter).weight("model.layers.3.mlp.up_proj.weight")
    assert np.array_equal(to_float32(left.weight(names[1])), to_float32(merged))
    _, said = export(source, tmp_path / "out", Shrink(drop_layers=1), lora=adapter)
    assert any(line.startswith("3 changed layers become int8") for line in said)


@pytest.mark.parametrize(
    ("shrink", "error", "words"),
    [
        (Shrink(drop_layers=2), UsageError, "from 1 to 1 for a model of 2 layers, got 2"),
        (Shrink(drop_layers=0), UsageError, "got 0"),
        (Shrink(mlp_width=40), UsageError, "multiple of 32 below 96, this model's own, got 40"),
        (Shrink(mlp_width=96), UsageError, "got 96"),
    ],
)
def test_a_wrong_number_is_named(
    tmp_path: Path, shrink: Shrink, error: type[EdgellmError], words: str
) -> None:
    base = open_checkpoint(tiny.write_folder(tmp_path / "m", TINY))
    with pytest.raises(error, match=words):
        apply(base, shrink, silent)


def test_fused_mlps_are_refused(tmp_path: Path) -> None:
    base = open_checkpoint(WRITERS["phi3"](tmp_path / "m"))
    with pytest.raises(Incompatible, match=r"no model.layers.0.mlp.gate_proj.weight"):
        apply(base, Shrink(mlp_width=64), silent)
