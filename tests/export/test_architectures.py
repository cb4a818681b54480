"""Every architecture beside Llama: its graphs against its forward pass in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arch_checks
import numpy as np
import pytest
import tiny_architectures as tiny
import tiny_models
from gguf import GGMLQuantizationType as Kind
from tiny_models import Built, make_bundle

from edgellm.errors import Corrupt, Incompatible
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import prefill
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session, load_onnxruntime
from edgellm_export import reference
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.weights import Float32

# Relative to the largest logit: float32 sums in another order.
LIMIT = 1e-4
IDS = np.random.default_rng(7).integers(0, tiny_models.vocab_size(), 24).tolist()

FLOATS = ["fp32", "fp16", "int8", "int4"]
BLOCKS = ["Q4_1", "Q8_0"]
EVERY = [(name, source) for name in tiny.CONFIGS for source in FLOATS] + [
    (name, source) for name in tiny.GGUF_ARCHITECTURES for source in BLOCKS
]
every = pytest.mark.parametrize(("name", "source"), EVERY)
Models = Callable[[str, str], Built]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Each model in a recipe's precision, or exactly as its GGUF blocks are; built once."""
    made: dict[tuple[str, str], Built] = {}

    def get(name: str, source: str) -> Built:
        if (name, source) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{source}")
            if source in FLOATS:
                path, precision = tiny.write_folder(folder / "source", name), source
            else:
                path, precision = tiny.write_gguf(folder / "m.gguf", name, Kind[source]), "exact"
            made[name, source] = tiny_models.build(open_checkpoint(path), precision, folder / "out")
        return made[name, source]

    return get


def expected(built: Built) -> Float32:
    return reference.forward(built.config, built.stored, IDS)


def session_of(built: Built, graph: str = "exact") -> Session:
    return Session(getattr(built, graph), built.shape, LoadOptions(threads=1))


def all_rows(session: Session) -> Float32:
    return session.forward(IDS, range(len(IDS)), KVCache(session.shape, len(IDS))).copy()


def assert_close(found: Float32, wanted: Float32) -> None:
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= LIMIT * np.abs(wanted).max()


@every
def test_the_graph_computes_the_forward_pass(models: Models, name: str, source: str) -> None:
    built = models(name, source)
    assert built.shape.architecture == name
    assert_close(all_rows(session_of(built)), expected(built))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_it_shows_the_hidden_states_of_its_probe_layer(
    models: Models, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch_checks.shows_the_residual_of_the_probe_layer(models(name, "fp32"), monkeypatch)


@every
def test_decoding_from_the_cache_equals_one_pass(models: Models, name: str, source: str) -> None:
    session = session_of(models(name, source))
    cache = KVCache(session.shape, 1)
    rows = [session.forward([token], [0], cache)[0].copy() for token in IDS]
    assert_close(np.stack(rows), all_rows(session))


@every
def test_prefill_in_chunks_equals_one_pass(
    models: Models, name: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(models(name, source))
    for chunk in (1, 5, 23):
        monkeypatch.setattr("edgellm.runtime.decode.CHUNK_TOKENS", chunk)
        last = prefill(session, KVCache(session.shape, len(IDS)), IDS)
        assert_close(last[None], all_rows(session)[-1:])


@every
def test_a_rolled_back_cache_remembers_nothing_of_the_wrong_turn(
    models: Models, name: str, source: str
) -> None:
    session = session_of(models(name, source))
    cache = KVCache(session.shape, len(IDS))
    wrong = [(token + 1) % session.shape.vocab_size for token in IDS]
    session.forward([*IDS[:10], *wrong[10:]], [], cache)
    assert cache.keep_common(IDS) == 10
    found = session.forward(IDS[10:], range(len(IDS) - 10), cache)
    assert_close(found, all_rows(session)[10:])


@every
def test_any_rows_are_the_same_rows(models: Models, name: str, source: str) -> None:
    session = session_of(models(name, source))
    wanted = all_rows(session)
    for rows in ([23], [3, 1, 22], [7, 7]):
        found = session.forward(IDS, rows, KVCache(session.shape, len(IDS)))
        assert_close(found, wanted[rows])


@every
def test_the_portable_graph_equals_the_native_one_also_padded(
    models: Models, name: str, source: str
) -> None:
    built = models(name, source)
    wanted = all_rows(session_of(built))
    ort = load_onnxruntime()
    session = ort.InferenceSession(str(built.portable), providers=["CPUExecutionProvider"])
    empty = np.zeros((2, built.shape.num_key_value_heads, 0, built.shape.head_dim), np.float32)
    feed = {value.name: empty for value in session.get_inputs()}
    feed["input_ids"] = np.array([IDS, IDS[:9] + [0] * (len(IDS) - 9)])
    feed["attention_mask"] = np.array([[1] * len(IDS), [1] * 9 + [0] * (len(IDS) - 9)])
    found = session.run(["logits"], feed)[0]
    assert_close(found[0], wanted)
    assert_close(found[1, :9], wanted[:9])


@pytest.mark.parametrize(("name", "source"), [pair for pair in EVERY if pair[1] not in FLOATS[:2]])
def test_int8_activations_change_little(models: Models, name: str, source: str) -> None:
    built = models(name, source)
    fast, exact = all_rows(session_of(built, "native")), all_rows(session_of(built))
    assert np.abs(fast - exact).max() < 0.1 * np.abs(exact).max()


@every
def test_every_number_is_counted_and_every_tensor_can_be_read_back(
    models: Models, name: str, source: str
) -> None:
    built = models(name, source)
    wanted = tiny.weights(built.config)
    assert built.shape.parameters == sum(values.size for values in wanted.values())
    for tensor, values in wanted.items():
        found = built.stored(tensor)
        assert found.shape == values.shape
        # 4 bits of a range of about 1; vectors are never rounded.
        assert np.abs(found - values).max() <= (0.0 if values.ndim == 1 else 0.1), tensor


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_the_whole_export_passes_its_self_check(tmp_path: Path, name: str) -> None:
    source = tiny.write_folder(tmp_path / "source", name, "BF16")
    report = make_bundle(source, tmp_path / "out", "int8").self_check
    assert report["logits_error_float32"] < 1e-5
    assert report["cache_error"] < 1e-5
    assert report["portable_error"] < 1e-5


@pytest.mark.parametrize(("name", "known"), [("olmo2", "olmo"), ("granite", "granite")])
def test_onnxruntime_genai_gets_a_name_it_knows(tmp_path: Path, name: str, known: str) -> None:
    make_bundle(tiny.write_folder(tmp_path / "source", name), tmp_path / "out", "fp32")
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["model"]["type"] == known


@pytest.mark.parametrize("name", tiny.GGUF_ARCHITECTURES)
def test_a_gguf_file_and_a_folder_of_the_same_numbers_are_the_same_model(
    tmp_path: Path, name: str
) -> None:
    interval = {"no_rope_layer_interval": 4} if name == "smollm3" else {}
    one = tiny.write_folder(tmp_path / "folder", name, **interval)
    two = tiny.write_gguf(tmp_path / "m.gguf", name, Kind.F32, Kind.F32)
    logits = [
        all_rows(session_of(tiny_models.build(open_checkpoint(path), "fp32", tmp_path / f"{i}")))
        for i, path in enumerate((one, two))
    ]
    assert np.array_equal(*logits)


def test_a_granite_file_that_does_not_say_its_multipliers_is_refused(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", "granite", Kind.Q8_0, granite=False)
    with pytest.raises(Corrupt, match=r"metadata granite\.attention\.scale is missing"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", {"sliding_window": 8}),
        ("mistral", {"sliding_window": None}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 0]}),
        ("olmo2", {"rms_norm_eps": 0.1}),
        ("granite", {"embedding_multiplier": 11.0}),
        ("granite", {"attention_multiplier": 0.25}),
        ("granite", {"residual_multiplier": 0.25}),
        ("granite", {"logits_scaling": 9.0}),
        ("granite", {"rms_norm_eps": 0.1}),
    ],
)
def test_what_the_config_says_is_in_the_graph_and_shows(
    models: Models, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    before = models(name, "fp32")
    source = tiny.write_folder(tmp_path / "source", name, **change)
    after = tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")
    logits = all_rows(session_of(after))
    assert_close(logits, expected(after))
    assert np.abs(logits - expected(before)).max() > 100 * LIMIT * np.abs(logits).max()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qwen2", "q_proj.bias"),
        ("qwen2", "k_proj.bias"),
        ("qwen2", "v_proj.bias"),
        ("qwen3", "q_norm.weight"),
        ("qwen3", "k_norm.weight"),
        ("olmo2", "q_norm.weight"),
        ("olmo2", "k_norm.weight"),
    ],
)
def test_every_extra_vector_has_its_place_and_shows(
    models: Models, tmp_path: Path, name: str, part: str
) -> None:
    before = models(name, "fp32")
    tensor = f"model.layers.1.self_attn.{part}"
    turned = {tensor: np.roll(before.stored(tensor), 1)}
    source = tiny.write_folder(tmp_path / "source", name, tensors=turned)
    after = tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")
    logits = all_rows(session_of(after))
    assert_close(logits, expected(after))
    assert np.abs(logits - expected(before)).max() > 100 * LIMIT * np.abs(logits).max()


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    wide = tiny.write_folder(tmp_path / "wide", "mistral", sliding_window=256)
    none = tiny.write_folder(tmp_path / "none", "mistral", sliding_window=None)
    graphs = [
        tiny_models.build(open_checkpoint(path), "fp32", tmp_path / f"{i}").native.read_bytes()
        for i, path in enumerate((wide, none))
    ]
    assert graphs[0] == graphs[1]
    assert b"local_window_size" not in graphs[0]


def test_a_list_of_layers_without_rope_wins_over_the_interval(
    models: Models, tmp_path: Path
) -> None:
    listed = tiny.write_folder(tmp_path / "source", "smollm3", no_rope_layers=[1, 0, 1, 0, 1])
    built = tiny_models.build(open_checkpoint(listed), "fp32", tmp_path / "out")
    assert built.native.read_bytes() == models("smollm3", "fp32").native.read_bytes()


def test_a_tied_head_may_go_unsaid_where_the_architecture_says_it(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", "smollm3", tie_word_embeddings=True)
    path = source / "config.json"
    path.write_text(path.read_text().replace('"tie_word_embeddings": true, ', ""))
    built = tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")
    assert_close(all_rows(session_of(built)), expected(built))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *((name, "hidden_act", "gelu") for name in tiny.CONFIGS),
        *((name, "mlp_bias", True) for name in tiny.CONFIGS if name != "olmo2"),
        *((name, "attention_bias", True) for name in tiny.CONFIGS if name != "qwen2"),
        *((name, "use_sliding_window", True) for name in ("qwen2", "qwen3", "smollm3")),
        *((name, "sliding_window", 64) for name in ("olmo2", "granite")),
    ],
)
def test_a_variant_that_the_builder_does_not_know_is_refused_by_name(
    tmp_path: Path, name: str, key: str, value: object
) -> None:
    source = tiny.write_folder(tmp_path / "source", name, **{key: value})
    with pytest.raises(Incompatible, match=f"{key} is .*{value}.*the {name} builder"):
        tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_rope_scaling_that_is_not_known_is_refused_by_name(tmp_path: Path, name: str) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    source = tiny.write_folder(tmp_path / "source", name, rope_scaling=scaling)
    with pytest.raises(Incompatible, match="rope_scaling 'dynamic' is not supported"):
        tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mistral", "sliding_window", 0),
        ("mistral", "sliding_window", "7"),
        ("smollm3", "no_rope_layers", [1, 0]),
        ("smollm3", "no_rope_layers", [1, 0, 2, 0]),
        ("smollm3", "no_rope_layers", [1, 0, [], 0]),
        ("smollm3", "no_rope_layers", "1010"),
        ("smollm3", "no_rope_layer_interval", 0),
        ("granite", "residual_multiplier", 0),
        ("granite", "residual_multiplier", -0.2),
        ("granite", "attention_multiplier", None),
        ("granite", "embedding_multiplier", "12"),
        ("granite", "logits_scaling", 1e9),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(
    tmp_path: Path, name: str, key: str, value: object
) -> None:
    source = tiny.write_folder(tmp_path / "source", name, **{key: value})
    with pytest.raises(Corrupt, match=f"^config.json: {key} must be ") as caught:
        tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part", "size"),
    [
        ("qwen2", "q_proj.bias", 32),
        ("qwen3", "q_norm.weight", 128),
        ("olmo2", "q_norm.weight", 16),
        ("olmo2", "k_norm.weight", 16),
    ],
)
def test_an_extra_vector_of_another_size_or_missing_is_named(
    tmp_path: Path, name: str, part: str, size: int
) -> None:
    tensor = f"model.layers.2.self_attn.{part}"
    wrong = {tensor: np.ones(size, np.float32)}
    with pytest.raises(Corrupt, match=rf"'{tensor}' has shape .*{size}"):
        open_checkpoint(tiny.write_folder(tmp_path / "wrong", name, tensors=wrong))
    source = tiny.write_folder(tmp_path / "missing", name, tensors={tensor: None})
    with pytest.raises(Corrupt, match=tensor):
        tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")


@pytest.mark.parametrize("name", [name for name in tiny.CONFIGS if name != "qwen2"])
def test_a_bias_that_nobody_asked_for_is_not_left_out_silently(tmp_path: Path, name: str) -> None:
    tensor = "model.layers.0.self_attn.v_proj.bias"
    c = tiny.config(name)
    bias = {tensor: np.ones(c["num_key_value_heads"] * c["head_dim"], np.float32)}
    source = tiny.write_folder(tmp_path / "source", name, tensors=bias)
    with pytest.raises(Incompatible, match=tensor):
        tiny_models.build(open_checkpoint(source), "fp32", tmp_path / "out")


@every
def test_the_portable_graph_decodes_from_its_own_cache(
    models: Models, name: str, source: str
) -> None:
    """Past the window too, where there is one (mistral: 7)."""
    arch_checks.portable_decodes_from_its_cache(models(name, source))
