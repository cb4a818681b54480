"""A graph whose cache grows: hand-made, small enough to say in numpy what it must answer."""

from __future__ import annotations

from pathlib import Path

import hand_traced
import numpy as np
import pytest
from hand_traced import write_graph

from edgellm.bundle.manifest import CONCAT, Graph, Shape
from edgellm.errors import EdgellmError, Incompatible
from edgellm.runtime.cache import KVCache
from edgellm.runtime.concat import ConcatSession, open_graph
from edgellm.runtime.decode import prefill
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session

V, N = 11, 4
SHAPE = Shape("hand", 1, 1, 1, N, N, V, 64, 1)
MADE = hand_traced.hand(V, N, mixed=False)
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
expected = MADE.logits


@pytest.fixture(params=[False, True], ids=["all rows", "chosen rows"])
def session(tmp_path: Path, request: pytest.FixtureRequest) -> Session:
    path = write_graph(tmp_path / "m.onnx", MADE, rows=request.param)
    graph = Graph("native", "m.onnx", "d", cache=CONCAT)
    return open_graph(path, graph, SHAPE, LoadOptions(threads=1))


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    same = found.shape == wanted.shape
    return same and bool(np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max())


def test_all_at_once_and_token_by_token_are_equal(session: Session) -> None:
    whole = session.forward(IDS, range(len(IDS)), session.new_cache(1))
    assert close(whole, expected(IDS))
    cache = session.new_cache(1)
    single = [session.forward([token], [0], cache)[0] for token in IDS]
    assert close(np.stack(single), expected(IDS))
    assert cache.tokens == IDS


def test_the_rows_that_are_asked_for_come_back(session: Session) -> None:
    found = session.forward(IDS, [7, 2, 2], session.new_cache(1))
    assert close(found, expected(IDS)[[7, 2, 2]])
    assert session.forward(IDS, [], session.new_cache(1)).shape == (0, V)


def test_a_long_prompt_goes_in_chunks(session: Session) -> None:
    ids = (IDS * 30)[:290]
    assert close(prefill(session, session.new_cache(1), ids), expected(ids)[-1])


def test_what_is_rolled_back_is_forgotten(session: Session) -> None:
    cache = session.new_cache(1)
    session.forward([*IDS[:4], 8, 8, 8], [], cache)
    assert cache.keep_common(IDS) == 4
    assert close(session.forward(IDS[4:], range(6), cache), expected(IDS)[4:])
    assert cache.keep_common([7, 7]) == 0
    assert close(session.forward(IDS, [9], cache), expected(IDS)[9:])


def test_the_cache_says_what_it_takes(session: Session) -> None:
    cache = session.new_cache(500)
    assert cache.nbytes == 0
    session.forward(IDS, [], cache)
    assert cache.nbytes == 2 * len(IDS) * N * 4


def test_two_caches_do_not_disturb_each_other(session: Session) -> None:
    one, two = session.new_cache(1), session.new_cache(1)
    found = []
    for token in IDS:
        found.append(session.forward([token], [0], one)[0])
        session.forward([(token + 1) % V], [0], two)
    assert close(np.stack(found), expected(IDS))


def test_a_run_that_fails_leaves_the_cache_as_it_was(session: Session) -> None:
    cache = session.new_cache(1)
    session.forward(IDS[:5], [], cache)
    with pytest.raises(EdgellmError, match="the model could not be run"):
        session.forward([V + 5], [0], cache)
    assert close(session.forward(IDS[5:], range(5), cache), expected(IDS)[5:])


def test_a_graph_that_wants_more_is_refused_by_name(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", MADE, extra="token_type_ids")
    with pytest.raises(Incompatible, match="wants token_type_ids"):
        ConcatSession(path, SHAPE, LoadOptions(threads=1))


def test_a_cache_of_the_other_kind_is_a_mistake_of_ours(session: Session) -> None:
    with pytest.raises(ValueError, match="new_cache"):
        session.forward(IDS, [], KVCache(SHAPE, 8))
