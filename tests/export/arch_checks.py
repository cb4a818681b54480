"""What every architecture promises: graphs that equal the numpy forward pass, however fed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_archs
import tiny_models as tiny
from tiny_models import Built

from edgellm.errors import Incompatible
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import prefill
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm_export import reference
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.io import probe_layer
from edgellm_export.reference import parts
from edgellm_export.weights import Float32

# Relative to the largest logit: float32 sums in another order.
LIMIT = 1e-4
# Three times the window of the tiny models, so that much has left it.
IDS = np.random.default_rng(7).integers(3, tiny.vocab_size(), 30).tolist()


def built(folder: Path, config: Mapping[str, Any], precision: str, dtype: str = "F32") -> Built:
    source = tiny_archs.write(folder / "source", config, dtype)
    return tiny.build(open_checkpoint(source), precision, folder / "out")


def session(model: Built, graph: str = "exact") -> Session:
    return Session(model.folder / f"{graph}.onnx", model.shape, LoadOptions(threads=1))


def one_pass(opened: Session, ids: list[int] = IDS) -> Float32:
    return opened.forward(ids, range(len(ids)), KVCache(opened.shape, len(ids))).copy()


def assert_close(found: Float32, wanted: Float32, limit: float = LIMIT) -> None:
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= limit * np.abs(wanted).max()


def equals_the_reference(model: Built) -> None:
    wanted = reference.forward(model.config, model.stored, IDS)
    assert_close(one_pass(session(model)), wanted)


def shows_the_residual_of_the_probe_layer(model: Built, patch: pytest.MonkeyPatch) -> None:
    """What the last norm of the numpy forward pass takes in when the model ends at that layer, up
    to one factor (Granite's residual is divided by its multiplier). Only where it is asked for."""
    probe = probe_layer(model.shape.num_hidden_layers)
    taken: list[Float32] = []
    norm = parts.rms_norm

    def recorded(x: Float32, *rest: Any, **named: Any) -> Float32:
        taken.append(x)
        return norm(x, *rest, **named)

    patch.setattr(parts, "rms_norm", recorded)
    reference.forward({**model.config, "num_hidden_layers": probe}, model.stored, IDS)
    opened = session(model)
    logits, hidden = opened.forward_hidden(IDS, [29], KVCache(model.shape, len(IDS)))
    assert_close(hidden / np.abs(hidden).max(), taken[-1] / np.abs(taken[-1]).max())
    assert_close(logits, one_pass(opened)[-1:])
    cache = KVCache(model.shape, 1)
    steps = [opened.forward_hidden([token], [0], cache)[1][0].copy() for token in IDS]
    assert_close(np.stack(steps), hidden)
    assert "hidden_states" not in outputs_of(model.portable)


def outputs_of(graph: Path) -> list[str]:
    ort = load_onnxruntime()
    opened = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return [value.name for value in opened.get_outputs()]


def equals_itself_however_fed(model: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single tokens past the window, chunks of every size, a rolled back cache, chosen rows."""
    opened = session(model)
    wanted = one_pass(opened)
    cache = KVCache(model.shape, 1)
    assert_close(np.stack([opened.forward([t], [0], cache)[0].copy() for t in IDS]), wanted)
    for chunk in (1, 7, 29):
        monkeypatch.setattr("edgellm.runtime.decode.CHUNK_TOKENS", chunk)
        assert_close(prefill(opened, KVCache(model.shape, len(IDS)), IDS)[None], wanted[-1:])
    cache = KVCache(model.shape, len(IDS))
    wrong = [(token + 1) % tiny.vocab_size() for token in IDS]
    opened.forward([*IDS[:19], *wrong[19:]], [], cache)
    assert cache.keep_common(IDS) == 19
    assert_close(opened.forward(IDS[19:], range(len(IDS) - 19), cache), wanted[19:])
    rows = [3, 1, 28]
    assert_close(opened.forward(IDS, rows, KVCache(model.shape, len(IDS))), wanted[rows])


def portable_equals_native(model: Built) -> None:
    """One pass, and a right-padded batch, through the graph that other programs load."""
    ort = load_onnxruntime()
    graph = ort.InferenceSession(str(model.portable), providers=["CPUExecutionProvider"])
    shape, short = model.shape, IDS[5:17]
    padding = [0] * (len(IDS) - len(short))
    empty = np.zeros((2, shape.num_key_value_heads, 0, shape.head_dim), np.float32)
    feed = {value.name: empty for value in graph.get_inputs()}
    feed["input_ids"] = np.array([IDS, short + padding])
    feed["attention_mask"] = np.array([[1] * len(IDS), [1] * len(short) + padding])
    found = np.asarray(graph.run(["logits"], feed)[0])
    opened = session(model)
    assert_close(found[0], one_pass(opened))
    assert_close(found[1, : len(short)], one_pass(opened, short))


def portable_decodes_from_its_cache(model: Built) -> None:
    """A prompt within the window, then token by token until most of it has left the window."""
    ort = load_onnxruntime()
    graph = ort.InferenceSession(str(model.portable), providers=["CPUExecutionProvider"])
    wanted, shape = one_pass(session(model)), model.shape
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), np.float32)
    past = {v.name: empty for v in graph.get_inputs() if v.name.startswith("past")}
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    start = 0
    for end in range(5, len(IDS) + 1):
        feed = {"input_ids": np.array([IDS[start:end]]), "attention_mask": np.ones((1, end), int)}
        logits, *present = graph.run(names, feed | past)
        past = dict(zip(past, present, strict=True))
        assert_close(np.asarray(logits)[0, -1:], wanted[end - 1 : end])
        start = end


def int8_activations_change_little(model: Built) -> None:
    exact, fast = one_pass(session(model)), one_pass(session(model, "native"))
    assert_close(fast, exact, 0.1)
    assert not np.array_equal(fast, exact)


def is_published(folder: Path, config: Mapping[str, Any], precision: str) -> list[str]:
    """What the export said; its own self-check has passed."""
    said: list[str] = []
    source = tiny_archs.write(folder / "source", config, "BF16")
    made = tiny.make_bundle(source, folder / "bundle", precision, said.append)
    assert made.shape.architecture == config["model_type"]
    return said


def is_refused(folder: Path, config: Mapping[str, Any], key: str, value: object) -> None:
    with pytest.raises(Incompatible, match=f"{key} is .*{value}"):
        built(folder, {**config, key: value}, "fp32")
