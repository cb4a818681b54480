"""Observing an answer: entropy, margin and hidden states, from the pass that makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models as tiny

from edgellm.errors import Incompatible
from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import prefill
from edgellm.runtime.local import load
from edgellm.runtime.observe import Watcher, make_describe, observed, plain
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.sampling import logprobs
from edgellm.runtime.session import HIDDEN, Session
from edgellm.runtime.text import Token
from edgellm.stream import Done, Hidden, Request, Sampling, TokenLogprob, complete

IDS = np.random.default_rng(5).integers(0, tiny.vocab_size(), 90).tolist()


@pytest.fixture
def session(built: tiny.Built) -> Session:
    return Session(built.exact, built.shape, LoadOptions(threads=1))


def raw(prompt: str = "the quick brown fox", tokens: int = 8, **changes: object) -> Request:
    return Request(prompt=prompt, max_tokens=tokens, sampling=Sampling(), **changes)  # type: ignore[arg-type]


def without_hidden(built: tiny.Built, folder: Path) -> Path:
    """The graph as it was exported before it had this output."""
    model = onnx.load(built.exact, load_external_data=False)
    kept = [value for value in model.graph.output if value.name != HIDDEN]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    (folder / "weights.onnx_data").write_bytes((built.folder / "weights.onnx_data").read_bytes())
    onnx.save(model, folder / "old.onnx")
    return folder / "old.onnx"


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("size", [2, 33, 49_152])
def test_entropy_and_margin_are_those_of_the_distribution(size: int, scale: float) -> None:
    logits = np.random.default_rng(size).normal(0, scale, size).astype(np.float32)
    before = logits.copy()
    token = observed(logits, 1, 2)
    exact = logits.astype(np.float64)
    log_p = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    best, second = np.sort(log_p)[::-1][:2]
    assert token.entropy == pytest.approx(-(np.exp(log_p) * log_p).sum(), rel=1e-4, abs=1e-5)
    assert token.margin == pytest.approx(best - second, rel=1e-5, abs=1e-6)
    logprob, top = logprobs(logits, 1, 2)
    assert token.logprob == pytest.approx(logprob, abs=1e-6)
    assert token.top == top
    assert np.array_equal(logits, before)


def test_forbidden_tokens_have_no_part_in_the_entropy() -> None:
    logits = np.array([1.0, -np.inf, 1.0, -np.inf], np.float32)
    token = observed(logits, 0, 0)
    assert (token.entropy, token.margin) == pytest.approx((np.log(2), 0.0))
    alone = observed(np.array([-np.inf, 3.0, -np.inf], np.float32), 1, 0)
    assert (alone.logprob, alone.entropy, alone.margin) == (0.0, 0.0, np.inf)


def test_a_token_is_described_only_as_far_as_was_asked() -> None:
    logits = np.array([0.0, 2.0, 1.0], np.float32)
    assert make_describe(None, False) is plain
    assert plain(logits, 1) == Token(1)
    named = make_describe(1, False)(logits, 2)
    assert (named.entropy, named.margin, [i for i, _ in named.top]) == (None, None, [1])
    seen = make_describe(None, True)(logits, 1)
    assert seen.top == ()
    assert seen.margin == pytest.approx(1.0)


def test_hidden_states_change_nothing_of_the_answer(built: tiny.Built, session: Session) -> None:
    with_hidden, hidden = session.forward_hidden(IDS, [3, 89], KVCache(built.shape, 90))
    assert hidden.shape == (90, built.shape.hidden_size)
    assert np.array_equal(with_hidden, session.forward(IDS, [3, 89], KVCache(built.shape, 90)))


@pytest.mark.parametrize("chunk", [128, 32])
def test_a_watcher_means_what_the_session_shows(
    built: tiny.Built, session: Session, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.runtime.decode.CHUNK_TOKENS", chunk)
    cache = KVCache(built.shape, 90)
    watcher = Watcher(session, 70)
    assert watcher.hidden() is None
    prefill(watcher, cache, IDS[:70])
    assert_like(watcher.hidden(), session_states(built, session)[:70], None)
    for token in IDS[70:]:
        watcher.forward([token], [0], cache)
    states = session_states(built, session)
    assert_like(watcher.hidden(), states[:70], states[70:])


def session_states(built: tiny.Built, session: Session) -> np.ndarray:
    return session.forward_hidden(IDS, [], KVCache(built.shape, 90))[1].copy()


def assert_like(found: Hidden | None, prompt: np.ndarray, answer: np.ndarray | None) -> None:
    assert found is not None
    near = {"rel": 1e-4, "abs": 1e-5}
    assert list(found.prompt_last) == pytest.approx(prompt[-1].tolist(), **near)
    assert list(found.prompt_mean) == pytest.approx(prompt.mean(axis=0).tolist(), **near)
    wanted = prompt[-1] if answer is None else answer.mean(axis=0)
    assert list(found.answer_mean) == pytest.approx(wanted.tolist(), **near)


def test_an_observed_answer_is_the_same_answer_with_its_signals(tiny_bundle: Path) -> None:
    with load(str(tiny_bundle)) as model:
        blind = complete(model.stream(raw()))
        *events, done = model.stream(raw(observe=True))
        width = model.bundle.manifest.shape.hidden_size
    assert isinstance(done, Done)
    assert "".join(event.text for event in events[1:]) == blind.text
    tokens: list[TokenLogprob] = [token for event in events[1:] for token in event.logprobs]
    assert len(tokens) == done.usage.completion_tokens == 8
    assert all(token.entropy is not None and token.entropy >= 0 for token in tokens)
    assert all(token.margin is not None and token.margin >= 0 for token in tokens)
    assert done.hidden is not None
    assert [len(part) for part in (done.hidden.prompt_last, done.hidden.answer_mean)] == [width] * 2
    assert blind.logprobs == ()


def test_what_the_cache_held_is_not_in_the_mean_of_the_prompt(tiny_bundle: Path) -> None:
    with load(str(tiny_bundle)) as model:
        (*_, fresh), (*_, again) = (list(model.stream(raw(observe=True))) for _ in range(2))
    assert again.hidden.prompt_last == pytest.approx(fresh.hidden.prompt_last, rel=1e-3, abs=1e-3)
    assert again.hidden.prompt_mean == again.hidden.prompt_last
    assert fresh.hidden.prompt_mean != fresh.hidden.prompt_last


def test_hidden_states_are_there_only_for_who_asks(tiny_bundle: Path) -> None:
    with load(str(tiny_bundle)) as model:
        *_, done = model.stream(raw(logprobs=2))
    assert done.hidden is None


def test_a_graph_from_before_answers_and_says_what_it_lacks(
    built: tiny.Built, tmp_path: Path
) -> None:
    old = Session(without_hidden(built, tmp_path), built.shape, LoadOptions(threads=1))
    assert not old.shows_hidden
    cache = KVCache(built.shape, 90)
    old.forward(IDS, [89], cache)
    with pytest.raises(Incompatible, match="shows no hidden states; export it again"):
        old.forward_hidden([1], [0], cache)
    assert len(cache) == 90
