"""The wire format: what a Request becomes, and what bytes become, whatever they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import Refused
from edgellm.routing.remote.answer import Answer, Unfit
from edgellm.routing.remote.options import CAPABILITIES, RemoteOptions
from edgellm.routing.remote.sse import Events, Unreadable
from edgellm.routing.remote.status import retry_after_s
from edgellm.routing.remote.wire import decode, encode, read_usage
from edgellm.routing.tokens import prompt_estimate
from edgellm.stream import Message, Request, Sampling, Usage

PLAIN = RemoteOptions("https://api.example.com/v1", "big")
ABLE = replace(PLAIN, capabilities=CAPABILITIES - {"max_completion_tokens"})
ASK = Request.user("Hi", "Be kind")
FULL = Sampling(
    temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, repeat_penalty=1.1, presence_penalty=0.5,
    frequency_penalty=-0.5, penalty_window=32, seed=7,
)  # fmt: skip


def body(options: RemoteOptions, request: Request, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(options, request, prefix).body)
    return found


def test_a_plain_question_asks_for_nothing_but_an_answer() -> None:
    assert body(PLAIN, ASK) == {
        "model": "big",
        "messages": [
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": "Hi"},
        ],
        "max_tokens": 512,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert encode(PLAIN, ASK).path == "/chat/completions"
    assert encode(PLAIN, ASK).notices == ()


def test_every_parameter_is_sent_to_a_remote_that_knows_it() -> None:
    request = replace(ASK, sampling=FULL, stop=("a", "b"), logprobs=3, max_tokens=9)
    sent = body(ABLE, request)
    wanted = {
        "temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1, "repeat_last_n": 32, "seed": 7,
        "stop": ["a", "b"], "logprobs": True, "top_logprobs": 3, "max_tokens": 9,
    }  # fmt: skip
    assert wanted.items() <= sent.items()
    assert encode(ABLE, request).notices == ()


def test_what_a_remote_does_not_know_is_named_and_not_sent() -> None:
    none = replace(PLAIN, capabilities=frozenset())
    request = replace(ASK, sampling=FULL, logprobs=0, observe=True)
    sent, notices = body(none, request), encode(none, request).notices
    assert not {"top_k", "min_p", "repeat_penalty", "repeat_last_n", "seed", "logprobs"} & set(sent)
    text = " ".join(notices)
    for name in ("top_k 40", "min_p 0.05", "repeat_penalty 1.1", "penalty_window 32", "seed 7"):
        assert name in text
    assert "log-probabilities" in text
    assert "hidden states" in text


def test_neutral_sampling_is_sent_as_far_as_it_can_be_said() -> None:
    """llama.cpp's own defaults are top_k 40, min_p 0.05: silence would not be neutral."""
    assert {"temperature": 0.0, "top_p": 1.0}.items() <= body(
        PLAIN, replace(ASK, sampling=Sampling())
    ).items()
    able = body(ABLE, replace(ASK, sampling=Sampling()))
    assert {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}.items() <= able.items()
    assert encode(PLAIN, replace(ASK, sampling=Sampling())).notices == ()


def test_the_newer_name_of_the_length_is_sent_where_it_is_known() -> None:
    newer = replace(PLAIN, capabilities=frozenset({"max_completion_tokens"}))
    sent = body(newer, ASK)
    assert sent["max_completion_tokens"] == 512
    assert "max_tokens" not in sent
    assert body(newer, Request(prompt="Hi"))["max_tokens"] == 512


def test_a_raw_prompt_goes_to_completions_and_can_always_be_gone_on_from() -> None:
    request = Request(prompt="Once", logprobs=2)
    outgoing = encode(PLAIN, request, " upon")
    assert outgoing.path == "/completions"
    assert outgoing.echo == ""
    sent = json.loads(outgoing.body)
    assert (sent["prompt"], sent["logprobs"]) == ("Once upon", 2)
    assert "messages" not in sent


@pytest.mark.parametrize(
    ("style", "message", "fields"),
    [
        ("message", {"role": "assistant", "content": "On"}, {}),
        ("prefix", {"role": "assistant", "content": "On", "prefix": True}, {}),
        (
            "continue_final_message",
            {"role": "assistant", "content": "On"},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_each_server_is_told_to_go_on_in_its_own_words(
    style: Any, message: dict[str, Any], fields: dict[str, Any]
) -> None:
    sent = body(replace(ABLE, prefill_style=style), ASK, "On")
    assert sent["messages"][-1] == message
    assert fields.items() <= sent.items()
    with pytest.raises(Refused, match="prefill"):
        encode(PLAIN, ASK, "On")


def test_the_estimate_of_a_prompt_is_on_the_high_side() -> None:
    """37 tokens is what llama.cpp's server counts for this question to SmolLM2-135M-Instruct."""
    request = Request.user("What is the capital of France?")
    assert prompt_estimate(request) >= 37
    assert prompt_estimate(request, "The") > prompt_estimate(request)
    assert prompt_estimate(Request(prompt="abc" * 100)) == 100


def sse(*chunks: bytes) -> tuple[list[dict[str, object]], Events]:
    events = Events()
    return list(events.read(chunks)), events


def test_lines_may_end_in_any_way_and_be_cut_anywhere() -> None:
    whole = b': hi\r\ndata: {"a": 1}\r\rdata:{"a": 2}\n\nevent: x\ndata: {"a":\ndata: 3}\n\n'
    whole += b"data: [DONE]\n\ndata: {}\n"
    want = [{"a": 1}, {"a": 2}, {"a": 3}]
    for cut in range(len(whole)):
        found, events = sse(whole[:cut], whole[cut:])
        assert (found, events.malformed, events.finished) == (want, 0, True)


def test_a_line_counts_without_a_blank_one_after_it() -> None:
    events = Events()
    chunks: Iterator[bytes] = iter([b'data: {"a": 1}\n', b"never read"])
    assert next(events.read(chunks)) == {"a": 1}
    assert next(chunks) == b"never read"


@pytest.mark.parametrize(
    "line", [b"data: {", b"data: [1]", b"data: 3", b"garbage", b'{"a": 1}', b"data: " + b"[" * 9999]
)
def test_a_malformed_line_is_skipped_and_counted(line: bytes) -> None:
    found, events = sse(line + b"\n\n", b'data: {"a": 1}\n\n')
    assert (found, events.malformed) == ([{"a": 1}], 1)


def test_an_endless_line_and_endless_rubbish_are_given_up() -> None:
    with pytest.raises(Unreadable, match="without end"):
        sse(*[b"x" * 65536] * 20)
    with pytest.raises(Unreadable, match="101 malformed lines"):
        sse(b"x\n" * 200)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_bytes_are_a_traceback(chunks: list[bytes]) -> None:
    answer = Answer()
    try:
        deltas = [delta for delta in answer.read(iter(chunks)) if delta]
    except Unfit:
        return
    assert "".join(delta.text for delta in deltas) == answer.text


NAMES = "choices delta message content text finish_reason logprobs usage tokens token_logprobs"
NAMES += " top_logprobs index error prompt_tokens"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=4)
    ),
    max_leaves=20,
)
# How long examples take to make says something about the machine, and nothing about the code.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNTIMED
@given(st.dictionaries(st.sampled_from(["choices", "usage", "error"]), JSON))
def test_no_json_is_a_traceback(raw: dict[str, Any]) -> None:
    lines = b"data: " + json.dumps(raw).encode() + b"\n\n"
    for reply in (lines, json.dumps(raw).encode()):
        answer = Answer()
        try:
            for delta in answer.read(iter([reply])):
                assert delta is None or delta.text.encode() is not None
        except Unfit:
            pass
        usage, _ = answer.count(10, 10)
        assert usage.prompt_tokens >= 1


def test_logprobs_are_read_in_both_shapes_and_dropped_in_any_other() -> None:
    chat = {
        "content": [{"token": "a", "logprob": -1, "top_logprobs": [{"token": "b", "logprob": -2}]}]
    }
    legacy = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -2.0}]}
    for shape in (chat, legacy):
        (token,) = decode({"choices": [{"text": "a", "logprobs": shape}]}).logprobs
        assert (token.token, token.token_id, token.logprob) == ("a", -1, -1.0)
        assert token.top == (("b", -1, -2.0),)
        assert (token.entropy, token.margin) == (None, None)
    for odd in ({"content": [{}]}, {"tokens": ["a"], "token_logprobs": [1, 2]}, {"content": [3]}):
        assert decode({"choices": [{"text": "a", "logprobs": odd}]}).logprobs == ()


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4)),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
            Usage(3, 4, 2),
        ),
        ({"prompt_tokens": True, "completion_tokens": 4}, None),
        ({"prompt_tokens": 3.0, "completion_tokens": 4}, None),
        ({"prompt_tokens": 3}, None),
        ([], None),
    ],
)
def test_usage_is_read_or_not_at_all(raw: object, usage: Usage | None) -> None:
    assert read_usage(raw) == usage


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0.5 "}, 0.5),
        (
            {
                "retry-after": "Fri, 20 Nov 2026 11:00:30 GMT",
                "date": "Fri, 20 Nov 2026 11:00:00 GMT",
            },
            30.0,
        ),
        ({"retry-after": "Fri, 20 Nov 2020 11:00:30 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "9" * 40}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_s(headers) == seconds


def test_a_conversation_keeps_its_order() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert [m["content"] for m in body(PLAIN, Request(turns))["messages"]] == ["a", "b", "c"]
