"""The self-check catches what an export may get wrong, and nothing is published then."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
from tiny_models import ALL_KV_HEADS, TINY, Kind, make_bundle

from edgellm.bundle import tokenizer
from edgellm.bundle.manifest import MANIFEST_NAME, Source
from edgellm.runtime.cache import KVCache
from edgellm_export import blocks, io, verify
from edgellm_export.checks import SelfCheckFailed, within
from edgellm_export.data import DataFile
from edgellm_export.graph import Graph
from edgellm_export.linear import Matrix
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.quantize.calibrate import Calibration
from edgellm_export.recipe import Limits, recipe
from edgellm_export.store import WeightStore

PRECISIONS = ["fp32", "fp16", "int8", "int4", "int2", "exact"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Query, key and value of one size, so that they can be mistaken for each other."""
    return tiny.write_gguf(tmp_path / "m.gguf", ALL_KV_HEADS, Kind.Q4_1)


def refused(source: Path, tmp_path: Path, precision: str = "fp32") -> str:
    """Why the self-check refuses the export of `source`: one line, and no bundle."""
    out = tmp_path / "out"
    with pytest.raises(SelfCheckFailed) as caught:
        make_bundle(source, out, precision)
    assert not (out / MANIFEST_NAME).exists()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the bundle failed its self-check: ")
    return message


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sound_export_passes_and_reports_its_figures(
    source: Path, tmp_path: Path, precision: str
) -> None:
    report = make_bundle(source, tmp_path / "out", precision).self_check
    assert set(report) == {field.name for field in verify.Report.__dataclass_fields__.values()}
    # Random weights are sure of no token, so there is no share of these.
    assert (report["text_sure_tokens"], report["text_sure_top1"]) == (0, None)
    assert all(math.isfinite(v) for name, v in report.items() if name != "text_sure_top1")
    assert report["tokens"] == verify.TOKENS
    assert report["tensors"] == 20
    assert report["exact_tensors"] == (20 if precision == "exact" else 5)
    assert (report["weights_rms_error"] == 0) == (precision in ("exact", "fp32"))
    assert report["logits_error_float32"] < 1e-5
    assert report["cache_error"] < 1e-5
    assert report["turns_error"] < 1e-5
    assert report["portable_error"] < 1e-5
    assert report["kl_int8_activations"] < 0.001
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("at", [0.0, 0.3, 0.999])
def test_one_changed_byte_of_the_weights_is_found(
    source: Path, tmp_path: Path, precision: str, at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = verify.check

    def damaged(candidate: verify.Candidate, *rest: Any) -> verify.Report:
        path = candidate.data.path
        raw = bytearray(path.read_bytes())
        raw[int(at * len(raw))] ^= 1
        path.write_bytes(raw)
        return check(candidate, *rest)

    monkeypatch.setattr(verify, "check", damaged)
    assert "is not what was written" in refused(source, tmp_path, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_weight_is_found_even_when_it_was_written_so(
    source: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = DataFile.append

    def shifted(self: DataFile, name: str, array: np.ndarray) -> blocks.Stored:
        return append(self, name, np.roll(array, 1, axis=0) if "layers.1.down" in name else array)

    monkeypatch.setattr(DataFile, "append", shifted)
    assert "model.layers.1.mlp.down_proj.weight" in refused(source, tmp_path, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_query_and_key_exchanged_in_the_graph_are_found(
    source: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = WeightStore.linear

    def exchanged(self: WeightStore, name: str, *parts: str) -> Matrix:
        q_first = name.endswith(".qkv")
        return linear(self, name, *((parts[1], parts[0], parts[2]) if q_first else parts))

    monkeypatch.setattr(WeightStore, "linear", exchanged)
    assert "logits differ by" in refused(source, tmp_path, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_query_and_key_exchanged_in_the_file_are_found(
    source: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = verify.check

    def exchanged(candidate: verify.Candidate, *rest: Any) -> verify.Report:
        places = dict(candidate.places)
        q, k = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk")
        places[q], places[k] = places[k], places[q]
        stored = verify.StoredWeights(candidate.data, places)
        return check(replace(candidate, places=places, stored=stored), *rest)

    monkeypatch.setattr(verify, "check", exchanged)
    message = refused(source, tmp_path, precision)
    assert "model.layers.0.self_attn.q_proj.weight" in message


def test_a_broken_portable_graph_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portable = io.portable

    def late(g: Graph) -> io.Inputs:
        inputs = portable(g)
        one = g.constant(np.array([1], np.int32))
        last = g.op("Sub", inputs.position.last, one)
        return replace(inputs, position=replace(inputs.position, last=last))

    monkeypatch.setattr(io, "portable", late)
    assert "portable graph" in refused(source, tmp_path)


def test_a_cache_that_forgets_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = KVCache.keep_common

    def forgetful(self: KVCache, ids: Sequence[int]) -> int:
        self.buffers[0][:, :, 3] = 0
        return keep(self, ids)

    monkeypatch.setattr(KVCache, "keep_common", forgetful)
    assert "KV cache differ by" in refused(source, tmp_path)


def test_activations_that_cost_too_much_are_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ACTIVATIONS_KL_LIMIT", 1e-9)
    assert "int8 activations (KL)" in refused(source, tmp_path, "exact")


def test_a_second_turn_over_a_damaged_cache_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_turn = verify._second_turn
    keep = KVCache.keep_common
    reused: list[int] = []

    def forgetful(self: KVCache, ids: Sequence[int]) -> int:
        common = keep(self, ids)
        reused.append(common)
        self.buffers[0][:, :, common - 1] = 0
        return common

    def damaged(*args: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(KVCache, "keep_common", forgetful)
            return second_turn(*args)

    monkeypatch.setattr(verify, "_second_turn", damaged)
    assert "a second turn's logits differ by" in refused(source, tmp_path)
    assert reused[0] > 5


def test_a_bundle_too_far_from_the_float_weights_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(recipe("int2"), limits=Limits(0.001, 0.0))
    monkeypatch.setattr(tiny, "recipe", lambda name: strict)
    message = refused(source, tmp_path, "int2")
    assert "(int2 allows 0.001)" in message
    assert "sure tokens (0% needed)" in message


def test_the_float_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "source", TINY)
    kl = {
        name: make_bundle(folder, tmp_path / name, name).self_check["text_kl"]
        for name in ("fp32", "int8", "int4", "int2")
    }
    assert kl["fp32"] < 1e-6 < kl["int8"] < 0.002 < 10 * kl["int8"] < kl["int4"]
    assert 3 * kl["int4"] < kl["int2"]


def test_a_calibrated_bundle_is_compared_on_the_text_of_its_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_folder(tmp_path / "source", TINY)
    text = tmp_path / "text.txt"
    text.write_text("water boils and the moon is over the lazy dog\n" * 200)
    asked: list[list[int]] = []
    forward = verify.reference.forward

    def heard(config: Any, weight: Any, ids: Sequence[int]) -> Any:
        asked.append(list(ids))
        return forward(config, weight, ids)

    monkeypatch.setattr(verify.reference, "forward", heard)
    (tmp_path / "out").mkdir()
    calibration = Calibration(tmp_path / "cache", text, tokens=512)
    job = Job(folder, recipe("int4"), Source("x"), "x", calibration=calibration)
    export_bundle(job, tmp_path / "out")
    ids = tokenizer.read(tmp_path / "out").encode(text.read_text(), special=False)
    assert asked[0] == ids[: len(asked[0])]
    assert len(asked[0]) == TINY.context


def test_not_a_number_is_never_within_a_limit() -> None:
    with pytest.raises(SelfCheckFailed, match="differ by nan"):
        within("logits", float("nan"), 1.0)


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return folder


def test_a_tokenizer_that_loses_text_is_found(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "source", TINY)
    rewrite(folder, "tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"}))
    assert "tokenizer changes plain text" in refused(folder, tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_is_found(tmp_path: Path) -> None:
    smaller = tiny.vocab_size() - 40
    table = tiny.weights(TINY)["model.embed_tokens.weight"][:smaller]
    folder = tiny.write_folder(
        tmp_path / "source",
        TINY,
        changes={"model.embed_tokens.weight": table},
        config={"vocab_size": smaller},
    )
    message = refused(folder, tmp_path)
    assert f"the model has {smaller}" in message


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_drops_the_user_is_found(tmp_path: Path, template: str) -> None:
    folder = tiny.write_folder(tmp_path / "source", TINY)
    rewrite(folder, "tokenizer_config.json", lambda c: c.update(chat_template=template))
    assert "drops what the user says" in refused(folder, tmp_path)


def test_a_template_that_drops_the_second_question_is_found(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "source", TINY)
    first = "{{ messages[0].content }}"
    rewrite(folder, "tokenizer_config.json", lambda c: c.update(chat_template=first))
    assert "drops the second question" in refused(folder, tmp_path)


def test_a_template_for_single_questions_is_exported_with_a_line(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "source", TINY)
    once = (
        "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    rewrite(folder, "tokenizer_config.json", lambda c: c.update(chat_template=once))
    lines: list[str] = []
    made = make_bundle(folder, tmp_path / "out", "fp32", lines.append)
    assert [line for line in lines if "only single questions" in line and "one only" in line]
    assert made.self_check["turns_error"] < 1e-5


def test_a_model_without_a_template_is_exported_with_a_line(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "source", TINY)
    rewrite(folder, "tokenizer_config.json", lambda c: c.pop("chat_template"))
    lines: list[str] = []
    make_bundle(folder, tmp_path / "out", "fp32", lines.append)
    assert [line for line in lines if "no chat template" in line]
