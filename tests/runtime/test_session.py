"""A session in ONNX Runtime: bound once, mutated in place, refused in one line."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny

from edgellm.errors import Corrupt, EdgellmError, NotFound, Refused, UsageError
from edgellm.runtime import session as session_module
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.providers import CPU, choose
from edgellm.runtime.session import KEPT_BINDINGS, Session
from edgellm_export import reference

IDS = np.random.default_rng(3).integers(0, tiny.vocab_size(), 90).tolist()


@pytest.fixture
def session(built: tiny.Built) -> Session:
    return Session(built.exact, built.shape, LoadOptions(threads=1))


@pytest.fixture(scope="module")
def expected(built: tiny.Built) -> np.ndarray:
    return reference.forward(built.config, built.stored, IDS)


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(new tokens, rows) of every binding that is made."""
    calls: list[tuple[int, int]] = []
    make = Session._make_binding

    def counted(self: Session, new: int, rows: int, cache: KVCache, hidden: bool) -> Any:
        calls.append((new, rows))
        return make(self, new, rows, cache, hidden)

    monkeypatch.setattr(Session, "_make_binding", counted)
    return calls


def test_decoding_binds_once(session: Session, built: tiny.Built, made: list[Any]) -> None:
    cache = KVCache(built.shape, 64)
    session.forward(IDS[:20], [19], cache)
    for token in IDS[20:50]:
        session.forward([token], [0], cache)
    assert made == [(20, 1), (1, 1)]
    # A second answer of the same kind needs no new one either.
    cache.keep_common(IDS[:25])
    for token in IDS[24:40]:
        session.forward([token], [0], cache)
    assert made == [(20, 1), (1, 1)]


def test_few_bindings_are_kept_and_decoding_is_never_the_one_that_goes(
    session: Session, built: tiny.Built, made: list[Any]
) -> None:
    cache = KVCache(built.shape, 256)
    for length in range(2, 12):
        session.forward([1] * length, [], cache)
        session.forward([1], [0], cache)
    assert made.count((1, 1)) == 1
    assert len(session._bound) <= KEPT_BINDINGS


def test_the_cache_may_grow_while_it_is_bound(
    session: Session, built: tiny.Built, expected: np.ndarray
) -> None:
    cache = KVCache(built.shape, 1)
    found = [session.forward([token], [0], cache)[0].copy() for token in IDS]
    assert (cache.capacity, cache.generation) == (128, 1)
    assert close(np.stack(found), expected)


def test_buffers_that_moved_are_set_free(session: Session, built: tiny.Built) -> None:
    cache = KVCache(built.shape, 1)
    session.forward(IDS[:5], [4], cache)
    session.forward([1], [0], cache)
    old = [weakref.ref(buffer) for buffer in cache.buffers]
    cache.reserve(1000)
    session.forward([1], [0], cache)
    gc.collect()
    assert [ref for ref in old if ref() is not None] == []


def test_two_caches_do_not_disturb_each_other(
    session: Session, built: tiny.Built, expected: np.ndarray
) -> None:
    one, two = KVCache(built.shape, 90), KVCache(built.shape, 90)
    found = []
    for token in IDS[:30]:
        found.append(session.forward([token], [0], one)[0].copy())
        session.forward([(token + 1) % tiny.vocab_size()], [0], two)
    assert close(np.stack(found), expected[:30])


def test_logits_are_overwritten_by_the_next_call(session: Session, built: tiny.Built) -> None:
    cache = KVCache(built.shape, 64)
    first = session.forward([1], [0], cache)
    copy = first.copy()
    second = session.forward([2], [0], cache)
    assert np.shares_memory(first, second)
    assert not np.array_equal(copy, second)


@pytest.mark.parametrize("rows", [[], [0], [89], [5, 2, 2, 88], range(90)])
def test_the_rows_that_are_asked_for_come_back(
    session: Session, built: tiny.Built, expected: np.ndarray, rows: Any
) -> None:
    found = session.forward(IDS, rows, KVCache(built.shape, 90))
    assert found.shape == (len(rows), tiny.vocab_size())
    assert not len(rows) or close(found, expected[list(rows)])


def test_an_id_that_the_model_does_not_know_is_one_line_and_changes_nothing(
    session: Session, built: tiny.Built, expected: np.ndarray
) -> None:
    cache = KVCache(built.shape, 90)
    session.forward(IDS[:10], [9], cache)
    with pytest.raises(EdgellmError, match="could not be run") as caught:
        session.forward([tiny.vocab_size() + 5], [0], cache)
    assert "\n" not in str(caught.value)
    assert cache.tokens == IDS[:10]
    assert close(session.forward([IDS[10]], [0], cache), expected[10:11])


def test_everything_runs_on_the_cpu_and_is_counted(session: Session) -> None:
    found = session.placement()
    assert list(found) == [CPU]
    assert found[CPU].nodes > 20
    assert found[CPU].weight_share == 1.0
    assert session.notice is None


def test_an_accelerator_that_is_not_there_is_a_notice(built: tiny.Built) -> None:
    session = Session(built.exact, built.shape, LoadOptions(provider="cuda", threads=1))
    assert session.notice is not None
    assert "CUDAExecutionProvider" in session.notice
    assert session.notice.endswith("running on the CPU")
    assert list(session.placement()) == [CPU]


def test_a_required_accelerator_that_is_not_there_is_refused(built: tiny.Built) -> None:
    options = LoadOptions(provider="cuda", require_provider=True)
    with pytest.raises(Refused, match=r"CUDAExecutionProvider is not in .*--require-ep"):
        Session(built.exact, built.shape, options)


@pytest.mark.parametrize(
    ("wanted", "required", "installed", "provider", "notice"),
    [
        ("auto", False, [CPU], CPU, None),
        ("cpu", True, [CPU], CPU, None),
        ("CPU", False, [CPU], CPU, None),
        (CPU, True, [CPU], CPU, None),
        ("cuda", False, [CPU], CPU, "is not in the installed onnxruntime"),
        ("cuda", False, ["CUDAExecutionProvider", CPU], CPU, "no float32 attention"),
        ("XnnpackExecutionProvider", False, ["XnnpackExecutionProvider", CPU], CPU, "no float32"),
    ],
)
def test_the_provider_is_chosen_and_a_difference_is_said(
    wanted: str, required: bool, installed: list[str], provider: str, notice: str | None
) -> None:
    found = choose(wanted, required, installed)
    assert found.provider == provider
    assert (found.notice is None) == (notice is None)
    assert notice is None or notice in str(found.notice)


@pytest.mark.parametrize("required", [True, False])
def test_a_provider_that_nobody_knows_is_not_found(required: bool) -> None:
    with pytest.raises(NotFound, match="'warp'; there are: cpu, cuda, tensorrt"):
        choose("warp", required, [CPU])


@pytest.mark.parametrize(
    "options",
    [
        {"provider": ""},
        {"require_provider": True},
        {"threads": 0},
        {"threads": 1025},
        {"context_tokens": 0},
    ],
)
def test_impossible_options_are_wrong_usage(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LoadOptions(**options)


def damaged(built: tiny.Built, tmp_path: Path, graph: bytes | None, data: bytes | None) -> Path:
    for name, given in (("exact.onnx", graph), ("weights.onnx_data", data)):
        whole = (built.folder / name).read_bytes()
        (tmp_path / name).write_bytes(whole if given is None else given)
    return tmp_path / "exact.onnx"


@pytest.mark.parametrize("keep", [0, 1, 500, 0.5])
def test_a_damaged_graph_is_corrupt(built: tiny.Built, tmp_path: Path, keep: float) -> None:
    whole = built.exact.read_bytes()
    cut = whole[: int(keep * len(whole)) if keep < 1 else int(keep)]
    with pytest.raises(Corrupt, match=r"cannot be loaded.*pull it again") as caught:
        Session(damaged(built, tmp_path, cut, None), built.shape, LoadOptions())
    assert "\n" not in str(caught.value)


def test_weights_that_are_too_short_are_corrupt(built: tiny.Built, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="cannot be loaded"):
        Session(damaged(built, tmp_path, None, b"short"), built.shape, LoadOptions())


def test_a_graph_that_is_not_there_is_corrupt(built: tiny.Built, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="cannot be loaded"):
        Session(tmp_path / "none.onnx", built.shape, LoadOptions())


MISSING = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ImportError("no onnxruntime here")

sys.meta_path.insert(0, Block())
from edgellm.errors import MissingExtra
from edgellm.runtime import session
try:
    session.load_onnxruntime()
except MissingExtra as error:
    print(error)
"""


def test_without_onnxruntime_the_extra_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("\n") == 1
    assert "no onnxruntime here" in done.stdout
    assert "pip install 'edgellm[cpu]'" in done.stdout


def test_an_error_of_many_lines_becomes_one() -> None:
    text = session_module._one_line(RuntimeError("first\n  second\n\n" + "x" * 1000))
    assert text.startswith("first second xxx")
    assert len(text) == 300
