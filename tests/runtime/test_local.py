"""The local backend on a tiny bundle: what a user of `load` gets, and when it is refused."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny

from edgellm.device import detect
from edgellm.errors import (
    ContextFull,
    Corrupt,
    EdgellmError,
    Incompatible,
    MemoryShort,
    Refused,
    UsageError,
)
from edgellm.runtime.cache import STEP_TOKENS
from edgellm.runtime.local import LOGIT_ROWS, LocalBackend, load, open_logits
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm.stream import Delta, Done, Message, Request, Sampling, Start, complete

GREEDY = Sampling()
CONTEXT = tiny.WIDE_HEADS.context


@pytest.fixture
def model(tiny_bundle: Path) -> Iterator[LocalBackend]:
    with load(str(tiny_bundle)) as opened:
        yield opened


def raw(prompt: str, tokens: int = 12, **changes: object) -> Request:
    return Request(prompt=prompt, max_tokens=tokens, sampling=GREEDY, **changes)  # type: ignore[arg-type]


def fresh(folder: Path, request: Request) -> str:
    """The answer of a model that has seen nothing before."""
    with load(str(folder)) as opened:
        return complete(opened.stream(request)).text


def test_an_answer_is_a_start_some_text_and_the_figures(
    model: LocalBackend, tiny_bundle: Path
) -> None:
    start, *deltas, done = model.stream(raw("in the year"))
    assert isinstance(start, Start)
    assert (start.model, start.cached_tokens, start.notices) == ("tiny-llama", 0, ())
    assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
    assert isinstance(done, Done)
    assert done.finish_reason == "length"
    assert done.usage.completion_tokens == 12
    assert done.usage.prompt_tokens == start.prompt_tokens > 1
    figures = done.timings
    assert figures.load_ms > 0
    assert figures.first_token_ms > 0
    assert figures.prefill_tokens_per_s > 0
    assert figures.decode_tokens_per_s > 0
    assert list(done.placement) == ["CPUExecutionProvider"]
    assert done.memory is not None
    assert done.memory.peak_rss_mb > done.memory.weights_mb > 0
    assert done.memory.kv_mb * 1e6 == 2 * 2 * 2 * 32 * 4 * STEP_TOKENS
    assert done.route.source == "local"


def test_greedy_text_is_the_same_from_run_to_run(model: LocalBackend, tiny_bundle: Path) -> None:
    request = raw("in the year", 40)
    first = complete(model.stream(request)).text
    assert complete(model.stream(request)).text == first
    assert fresh(tiny_bundle, request) == first


def test_turns_of_a_chat_use_the_cache_and_say_what_a_fresh_model_says(
    model: LocalBackend, tiny_bundle: Path
) -> None:
    messages: list[Message] = []
    before = 0
    for turn in ("the quick brown fox", "and the lazy dog", "in the year"):
        messages.append(Message("user", turn))
        request = Request(messages=tuple(messages), max_tokens=10, sampling=GREEDY)
        answer = complete(model.stream(request))
        assert answer.usage.cached_tokens >= before
        assert answer.text == fresh(tiny_bundle, request)
        before = answer.usage.prompt_tokens
        messages.append(Message("assistant", answer.text))


def test_another_prompt_keeps_only_what_is_the_same(model: LocalBackend) -> None:
    complete(model.stream(raw("the quick brown fox", 30)))
    shared = len(model.bundle.tokenizer.encode("the quick brown"))
    answer = complete(model.stream(raw("the quick brown water", 30)))
    assert 0 < answer.usage.cached_tokens <= shared
    assert complete(model.stream(raw("9 dogs"))).usage.cached_tokens == 0


def test_asking_again_computes_one_token_of_the_prompt(model: LocalBackend) -> None:
    for _ in range(2):
        answer = complete(model.stream(raw("the quick brown fox")))
    assert answer.usage.cached_tokens == answer.usage.prompt_tokens - 1


def test_the_cache_is_sized_from_the_request(model: LocalBackend) -> None:
    per_token = 2 * 2 * 2 * 32 * 4
    sizes = []
    for tokens in (3, 100, 3):
        memory = complete(model.stream(raw("the", tokens))).memory
        assert memory is not None
        sizes.append(memory.kv_mb * 1e6 / per_token)
    assert sizes == [64, 128, 128]


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(model: LocalBackend) -> None:
    events = model.stream(raw("7" * 300))
    with pytest.raises(ContextFull, match=f"300 tokens and the context holds {CONTEXT}"):
        next(events)
    # Exactly full leaves no room for an answer either.
    with pytest.raises(ContextFull):
        next(model.stream(raw("7" * CONTEXT)))
    assert complete(model.stream(raw("7" * (CONTEXT - 1), 1))).usage.completion_tokens == 1


def test_the_users_own_context_is_the_limit(tiny_bundle: Path) -> None:
    with load(str(tiny_bundle), LoadOptions(context_tokens=20)) as model:
        with pytest.raises(ContextFull, match=f"30 tokens and the context holds 20.*{CONTEXT}"):
            next(model.stream(raw("7" * 30)))
        start = next(model.stream(raw("7" * 15, 10)))
        assert isinstance(start, Start)
        assert start.notices == ("the answer may have 5 tokens instead of 10: the context is 20",)


def test_an_answer_that_fills_its_room_ends_there(model: LocalBackend) -> None:
    start, *_, done = model.stream(raw("7" * 200, 512))
    assert isinstance(start, Start)
    assert isinstance(done, Done)
    assert start.notices == (
        f"the answer may have 56 tokens instead of 512: the context is {CONTEXT}",
    )
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 56)


def test_a_stop_string_ends_the_text_before_it(model: LocalBackend) -> None:
    whole = complete(model.stream(raw("hello", 40))).text
    new = [at for at in range(2, 30) if whole.index(whole[at : at + 3]) == at]
    assert new
    for at in new[:4]:
        answer = complete(model.stream(raw("hello", 40, stop=(whole[at : at + 3],))))
        assert (answer.text, answer.finish_reason) == (whole[:at], "stop")
    unseen = complete(model.stream(raw("hello", 40, stop=("never said",))))
    assert (unseen.text, unseen.finish_reason) == (whole, "length")


def test_an_end_token_ends_the_answer(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    tiny.make_bundle(source, tmp_path / "plain", "fp32")
    with load(str(tmp_path / "plain")) as model:
        answer = complete(model.stream(raw("the quick", 30, logprobs=0)))
    ids = [token.token_id for token in answer.logprobs]
    end = next(i for i in range(3, 30) if ids[i] not in ids[:i])
    settings = json.loads((source / "generation_config.json").read_text())
    settings["eos_token_id"] = [2, ids[end]]
    (source / "generation_config.json").write_text(json.dumps(settings))
    tiny.make_bundle(source, tmp_path / "ending", "fp32")
    with load(str(tmp_path / "ending")) as model:
        shorter = complete(model.stream(raw("the quick", 30, logprobs=0)))
    assert shorter.finish_reason == "stop"
    assert [token.token_id for token in shorter.logprobs] == ids[:end]
    assert shorter.usage.completion_tokens == end


def test_log_probabilities_are_those_of_the_model(model: LocalBackend, tiny_bundle: Path) -> None:
    answer = complete(model.stream(raw("the quick", 10, logprobs=3)))
    assert len(answer.logprobs) == 10
    ids = model.bundle.tokenizer.encode("the quick", wrap=True)
    chosen = [token.token_id for token in answer.logprobs]
    with open_logits(str(tiny_bundle)) as source:
        logits = np.concatenate(list(source.logits(ids + chosen))).astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for i, token in enumerate(answer.logprobs):
        row = exact[len(ids) - 1 + i]
        assert token.logprob == pytest.approx(row[token.token_id], abs=1e-3)
        assert token.top[0][1] == token.token_id
        assert [value for _, _, value in token.top] == sorted(
            (value for _, _, value in token.top), reverse=True
        )
        assert token.top[2][2] == pytest.approx(np.sort(row)[-3], abs=1e-3)
        assert token.token == model.bundle.tokenizer.spell(token.token_id)
    assert complete(model.stream(raw("the quick", 3))).logprobs == ()


def test_a_seed_repeats_an_answer(model: LocalBackend) -> None:
    def sampled(seed: int | None) -> str:
        sampling = Sampling(temperature=1.5, seed=seed)
        return complete(model.stream(Request(prompt="the", max_tokens=24, sampling=sampling))).text

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(None) != sampled(None)


def test_without_sampling_the_publishers_own_is_used(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    settings = {"eos_token_id": 2, "do_sample": True, "temperature": 0.7, "top_k": 40}
    (source / "generation_config.json").write_text(json.dumps(settings))
    tiny.make_bundle(source, tmp_path / "out", "fp32")
    with load(str(tmp_path / "out")) as model:
        assert model.default_sampling == Sampling(temperature=0.7, top_k=40)
        texts = {complete(model.stream(Request(prompt="a", max_tokens=16))).text for _ in range(3)}
        assert len(texts) > 1


@pytest.mark.parametrize("pulled", [0, 1, 2, 5])
def test_a_stream_may_be_closed_at_any_time(
    model: LocalBackend, tiny_bundle: Path, pulled: int
) -> None:
    events = model.stream(raw("the quick", 30))
    for _ in range(pulled):
        next(events)
    events.close()  # type: ignore[attr-defined]
    request = raw("the quick brown", 20)
    assert complete(model.stream(request)).text == fresh(tiny_bundle, request)


def test_a_second_stream_is_refused_while_the_first_runs(model: LocalBackend) -> None:
    first, second = model.stream(raw("the")), model.stream(raw("quick"))
    next(first)
    with pytest.raises(EdgellmError, match="answering already"):
        next(second)
    assert isinstance(list(first)[-1], Done)
    assert complete(model.stream(raw("quick"))).usage.completion_tokens == 12


def test_an_error_in_the_middle_leaves_the_model_usable(
    model: LocalBackend, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Session.forward, []

    def failing(self: Session, *args: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 4:
            raise EdgellmError("the model could not be run: out of luck")
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "forward", failing)
    with pytest.raises(EdgellmError, match="out of luck"):
        complete(model.stream(raw("the quick")))
    request = raw("the quick brown")
    assert complete(model.stream(request)).text == fresh(tiny_bundle, request)


def test_a_closed_model_says_so_and_has_given_its_memory_back(tiny_bundle: Path) -> None:
    model = load(str(tiny_bundle))
    complete(model.stream(raw("the quick")))
    session = model._session
    assert session is not None
    alive = [weakref.ref(session), *(weakref.ref(b) for b in model._cache.buffers)]
    del session
    model.close()
    model.close()
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []
    with pytest.raises(EdgellmError, match="tiny-llama is closed; load it again"):
        next(model.stream(raw("the")))


def test_an_empty_prompt_is_wrong_usage(model: LocalBackend) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        next(model.stream(raw("")))
    assert complete(model.stream(raw("x"))).usage.prompt_tokens == 1


def test_messages_need_a_template(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path / "source", tiny.TINY)
    (source / "tokenizer_config.json").write_text("{}")
    tiny.make_bundle(source, tmp_path / "out", "fp32")
    with load(str(tmp_path / "out")) as model:
        with pytest.raises(UsageError, match=r"no chat template.*--raw"):
            next(model.stream(Request.user("hello")))
        assert complete(model.stream(raw("hello", 2))).usage.completion_tokens == 2


def test_a_machine_without_memory_is_refused_before_anything_is_loaded(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "available_memory_mb", lambda: 1.0)
    monkeypatch.setattr(Session, "__init__", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(MemoryShort, match="1 MB are available") as caught:
        load(str(tiny_bundle))
    assert "\n" not in str(caught.value)
    with pytest.raises(MemoryShort):
        open_logits(str(tiny_bundle))


def test_a_request_beyond_the_memory_is_refused_before_the_answer_starts(
    model: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "available_memory_mb", lambda: 1.0)
    monkeypatch.setattr(detect, "rss_mb", lambda: 1.0)
    with pytest.raises(MemoryShort, match="2 MB are available"):
        next(model.stream(raw("the")))
    monkeypatch.undo()
    assert complete(model.stream(raw("the"))).text


def test_a_required_accelerator_is_refused_and_a_wished_one_is_a_notice(
    tiny_bundle: Path,
) -> None:
    with pytest.raises(Refused, match="CUDAExecutionProvider"):
        load(str(tiny_bundle), LoadOptions(provider="cuda", require_provider=True))
    with load(str(tiny_bundle), LoadOptions(provider="cuda")) as model:
        start = next(model.stream(raw("the")))
        assert isinstance(start, Start)
        assert "running on the CPU" in start.notices[0]


def copied(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    "name", ["onnx/model_q4.onnx_data", "onnx/edgellm_q4.onnx", "tokenizer.json"]
)
def test_a_bundle_with_a_changed_byte_is_never_loaded(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    folder = copied(tiny_bundle, tmp_path / "copy")
    changed = bytearray((folder / name).read_bytes())
    changed[len(changed) // 2] ^= 1
    (folder / name).write_bytes(changed)
    with pytest.raises(Corrupt, match="was changed"):
        load(str(folder))


def test_a_bundle_without_a_native_graph_says_what_to_do(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = copied(tiny_bundle, tmp_path / "copy")
    described = json.loads((folder / "edgellm.json").read_text())
    del described["graphs"]["native"]
    (folder / "edgellm.json").write_text(json.dumps(described))
    with pytest.raises(Incompatible, match="no native graph; export the model again"):
        load(str(folder))


@pytest.mark.parametrize("length", [1, LOGIT_ROWS - 1, LOGIT_ROWS, LOGIT_ROWS + 1, 200])
def test_logits_come_for_every_token_in_order(tiny_bundle: Path, length: int) -> None:
    ids = np.random.default_rng(length).integers(0, tiny.vocab_size(), length).tolist()
    with open_logits(str(tiny_bundle)) as model:
        chunks = list(model.logits(ids))
        assert [len(chunk) for chunk in chunks[:-1]] == [LOGIT_ROWS] * (len(chunks) - 1)
        found = np.concatenate(chunks)
        assert found.shape == (length, tiny.vocab_size())
        # The chunks are the caller's own: the next call does not change them.
        again = np.concatenate(list(model.logits(ids)))
        assert np.array_equal(found, again)
        assert model.encode("the quick") == model._bundle.tokenizer.encode("the quick")


CHAT = Request(messages=(Message("user", "in the year"),), max_tokens=12, sampling=GREEDY)


def test_an_answer_goes_on_from_its_own_beginning_exactly(model: LocalBackend) -> None:
    events = list(model.stream(CHAT))
    pieces = [event.text for event in events if isinstance(event, Delta)]
    whole = "".join(pieces)
    beginning = "".join(pieces[:4])
    encode = model.bundle.tokenizer.encode
    # Where the beginning is not spelled by the tokens that made it, another text is right too.
    assert encode(beginning, special=False) == encode(whole, special=False)[:4]
    rest = replace(CHAT, max_tokens=8)
    assert beginning + complete(model.stream(rest, beginning)).text == whole


def test_a_beginning_follows_the_rendered_chat_template(model: LocalBackend) -> None:
    template, tokenizer = model.bundle.chat_template, model.bundle.tokenizer
    assert template is not None
    rendered = tokenizer.encode(template.render(CHAT.messages))
    ids = model.bundle.encode(CHAT, "Well, <|im_end|>")
    assert ids[: len(rendered)] == rendered
    rest = ids[len(rendered) :]
    assert rest == tokenizer.encode("Well, <|im_end|>", special=False)
    # Words of another model are text: they cannot end the turn.
    assert not tokenizer.special_ids & set(rest)
