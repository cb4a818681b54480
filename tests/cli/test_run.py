"""`edgellm run`: the prompt it builds, what it prints, what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from edgellm.cli.run import STDIN_LIMIT_BYTES
from edgellm.runtime.options import LoadOptions
from edgellm.stream import Message, Sampling

Run = Callable[..., Any]


def test_the_answer_and_nothing_else_goes_to_stdout(edgellm: Run) -> None:
    result = edgellm("run", "m", "hello")
    assert (result.code, result.out, result.err) == (0, "answer 1 to <hello>\n", "")
    assert result.model.closed


def test_notices_and_statistics_go_to_stderr(edgellm: Run) -> None:
    result = edgellm("run", "m", "notice", "--stats")
    assert result.out == "answer 1 to <notice>\n"
    assert result.err.splitlines() == [
        "a notice",
        "tokens   31 in the prompt (7 of them cached), 4 answered",
        "time     load 210 ms, first token 55 ms",
        "speed    prefill 900.0 tokens/s, decode not measurable",
        "placed   CPUExecutionProvider 100% of the weights",
        "memory   weights 82 MB, KV cache 12 MB, peak 240 MB (predicted 251 MB)",
    ]


def test_an_answer_cut_by_n_says_so_in_one_line(edgellm: Run) -> None:
    result = edgellm("run", "m", "hello", "-n", "2")
    assert result.out == "answer 1 to <\n"
    assert result.err == "stopped at 2 tokens (-n); a larger -n allows a longer answer\n"


def test_json_is_one_document_of_the_promised_shape(edgellm: Run) -> None:
    result = edgellm("run", "m", "notice: 日本", "--json")
    assert result.err == "a notice\n"
    assert json.loads(result.out) == {
        "text": "answer 1 to <notice: 日本>",
        "finish_reason": "stop",
        "model": "m",
        "usage": {"prompt_tokens": 31, "completion_tokens": 4, "cached_tokens": 7},
        "timings": {
            "load_ms": 210.0,
            "first_token_ms": 55.0,
            "prefill_tokens_per_s": 900.0,
            "decode_tokens_per_s": None,
        },
        "placement": {"CPUExecutionProvider": {"nodes": 412, "weight_share": 1.0}},
        "memory": {
            "weights_mb": 82.0,
            "kv_mb": 12.0,
            "peak_rss_mb": 240.0,
            "predicted_mb": 251.0,
        },
        "speculation": {"proposed": 0, "accepted": 0},
        "route": {
            "source": "local",
            "policy": "local-only",
            "reason": "policy local-only: nothing leaves this machine",
            "p_correct": None,
            "cost_usd": 0.0,
        },
    }


def test_logprobs_join_the_document_when_asked_for(edgellm: Run) -> None:
    result = edgellm("run", "m", "hi", "--json", "--logprobs", "1", "-n", "1")
    rival = {"token": "r0", "id": 0, "logprob": -2.5}
    expected = {"token": "answer 1", "id": 0, "logprob": -0.125, "top": [rival]}
    assert json.loads(result.out)["logprobs"] == [expected]


def test_logprobs_are_a_table_beside_the_answer(edgellm: Run) -> None:
    result = edgellm("run", "m", "hi", "--logprobs", "1", "-n", "1")
    assert result.out == "answer 1\n"
    assert result.err.splitlines()[0] == "'answer 1'         -0.125  'r0' -2.500"


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["m", "tell"], b"", "tell"),
        (["m"], b"piped\n", "piped"),
        ([], b"piped\n", "piped"),
        (["m", "tell"], b"line\nline\n\n", "tell\n\nline\nline"),
        (["m", "tell"], b"\xef\xbb\xbfmarked", "tell\n\nmarked"),
        (["m", "--", "-3 + 5 ="], b"", "-3 + 5 ="),
    ],
)
def test_prompt_and_pipe_become_one_question(
    edgellm: Run, arguments: list[str], stdin: bytes, prompt: str
) -> None:
    (request,) = edgellm("run", *arguments, stdin=stdin).model.requests
    assert request.messages == (Message("user", prompt),)


def test_raw_sends_the_exact_bytes_without_a_template(edgellm: Run) -> None:
    (request,) = edgellm("run", "m", "--raw", stdin=b"def f(x):\n").model.requests
    assert (request.prompt, request.messages) == ("def f(x):\n", ())


def test_without_a_model_the_default_one_answers(edgellm: Run) -> None:
    assert edgellm("run", stdin=b"hi").model.name == "smollm2-135m"


def test_sampling_that_is_not_given_keeps_the_recommendation(edgellm: Run) -> None:
    (request,) = edgellm("run", "m", "hi", "-t", "0", "--seed", "7").model.requests
    assert request.sampling == Sampling(temperature=0, top_p=0.9, seed=7)


def test_every_option_reaches_the_request(edgellm: Run) -> None:
    options = "-s sys -n 9 -t 1.5 --top-k 3 --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1"
    options += " --presence-penalty 0.2 --frequency-penalty 0.3 --seed 4 --stop a --stop b"
    (request,) = edgellm("run", "m", "hi", *options.split()).model.requests
    assert request.messages == (Message("system", "sys"), Message("user", "hi"))
    assert (request.max_tokens, request.stop) == (9, ("a", "b"))
    assert request.sampling == Sampling(1.5, 3, 0.5, 0.1, 1.1, 0.2, 0.3, seed=4)


def test_every_load_option_reaches_the_loader(edgellm: Run) -> None:
    options = ["--ctx", "2048", "--ep", "CUDA", "--require-ep", "--threads", "3", "--offline"]
    assert edgellm("run", "m", "hi", *options).model.options == LoadOptions(
        2048, "CUDA", require_provider=True, threads=3, offline=True
    )
    assert edgellm("run", "m", "hi", "--ctx", "auto").model.options == LoadOptions()


REFUSALS = [
    (["m", ""], b"", "the prompt is empty; give PROMPT or pipe text in"),
    (["m", " \n"], b"\n", "the prompt is empty; give PROMPT or pipe text in"),
    (["m"], b"", "the prompt is empty; give PROMPT or pipe text in"),
    (["m"], b"ok \xff", "stdin is not valid UTF-8 at byte 3; convert it, as iconv does"),
    (["m", "\udcff"], b"", "the prompt is not valid UTF-8 at character 0"),
    (["m", "hi", "-s", "\udcff"], b"", "an option is not valid UTF-8 at character 0"),
    (["m", "hi", "-n", "0"], b"", "max_tokens must be 1 or more, got 0"),
    (["m", "hi", "--top-p", "7"], b"", "top_p must be in (0, 1], got 7.0"),
    (["m", "hi", "-t", "nan"], b"", "temperature must be in [0, 100], got nan"),
    (["m", "hi", "-t", "-1"], b"", "temperature must be in [0, 100], got -1.0"),
    (["m", "hi", "--top-k", "-1"], b"", "top_k must be 0 (off) or more, got -1"),
    (["m", "hi", "--top-k", "1" + "0" * 400], b"", "top_k must be 0 (off) or more, got 1000"),
    (["m", "hi", "-n", "1" + "0" * 400], b"", "max_tokens must be 1 or more, got 1000"),
    (["m", "hi", "-n", "1" * 9999], b"", "is not a valid integer; see edgellm run -h"),
    (["m", "hi", "--min-p", "2"], b"", "min_p must be in [0, 1], got 2.0"),
    (["m", "hi", "--seed", "-1"], b"", "seed must be in [0, 2**64), got -1"),
    (["m", "hi", "--logprobs", "21"], b"", "logprobs must be in [0, 20], got 21"),
    (["m", "hi", "--stop", ""], b"", "stop takes up to 16 strings, none of them empty"),
    (["m", "hi", "--threads", "0"], b"", "threads must be in [1, 1024], got 0"),
    (["m", "hi", "--require-ep"], b"", "requiring a provider needs its name"),
    (["m", "hi", "--ctx", "0"], b"", "Invalid value for '--ctx': the context must be 1 token"),
    (["m", "hi", "--ctx", "big"], b"", "'big' is neither a number of tokens nor auto"),
    (["m", "hi", "--top-k", "x"], b"", "'x' is not a valid integer"),
    (["m", "hi", "--raw", "-s", "x"], b"", "--system needs the chat template; leave out --raw"),
    (["m", "hi", "more"], b"", "Got unexpected extra argument (more); see edgellm run -h"),
    (["Why is it?"], b"", "'Why is it?' is not a model; write: edgellm run smollm2-135m"),
    (["m", "hi", "--regex", "x"], b"", "No such option"),
    (["m", "hi", "--speculate", "ngram"], b"", "No such option"),
]


@pytest.mark.parametrize(("arguments", "stdin", "message"), REFUSALS)
def test_wrong_usage_is_one_line_and_code_2_before_a_model_is_loaded(
    edgellm: Run, arguments: list[str], stdin: bytes, message: str
) -> None:
    result = edgellm("run", *arguments, stdin=stdin)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("edgellm: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.model is None


def test_a_pipe_that_no_context_holds_is_refused(edgellm: Run) -> None:
    result = edgellm("run", "m", stdin=b"x" * (STDIN_LIMIT_BYTES + 1))
    assert result.code == 2
    assert str(STDIN_LIMIT_BYTES) in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["m", "full"], 3, "edgellm: the prompt has 900 tokens and the context is 512; shorten it"),
        (["nowhere", "hi"], 4, "edgellm: no model called nowhere; see edgellm models"),
        (
            ["m", "crash"],
            1,
            "edgellm: internal error: ZeroDivisionError: a bug of ours (run with --debug)",
        ),
    ],
)
def test_an_error_is_one_line_with_the_code_of_its_kind(
    edgellm: Run, arguments: list[str], code: int, line: str
) -> None:
    for extra in ([], ["--json"]):
        result = edgellm("run", *arguments, *extra)
        assert (result.code, result.out, result.err) == (code, "", line + "\n")


@pytest.mark.parametrize("where", ["group", "command", "environment"])
def test_a_traceback_is_shown_on_request_only(
    edgellm: Run, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_LOG", "debug" if where == "environment" else "")
    before = ["--debug"] if where == "group" else []
    after = ["--debug"] if where == "command" else []
    result = edgellm(*before, "run", "m", "crash", *after)
    assert result.err.startswith("Traceback (most recent call last)")
    assert result.code == 1


def test_an_unknown_command_is_wrong_usage(edgellm: Run) -> None:
    result = edgellm("rnu", "m")
    assert result.code == 2
    assert result.err.startswith("edgellm: No such command 'rnu'")
    assert result.err.count("\n") == 1


def test_control_characters_pass_a_pipe_untouched(edgellm: Run) -> None:
    assert edgellm("run", "m", "escape").out == "\x1b[31mred\x1b[0m\n"


def test_a_control_character_in_an_error_cannot_steer_the_terminal(edgellm: Run) -> None:
    result = edgellm("run", "two words\x1b[2J")
    assert "\x1b" not in result.err


def test_an_output_that_cannot_show_a_letter_still_gets_the_answer(
    start: Callable[..., Any], environment: dict[str, str]
) -> None:
    environment["PYTHONIOENCODING"] = "ascii"
    process = start("run", "m", "é")
    out, err = process.communicate(b"", timeout=30)
    assert (process.returncode, out, err) == (0, b"answer 1 to <?>\n", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(start: Callable[..., Any]) -> None:
    with open("/dev/full", "wb") as full:
        process = start("run", "m", "hi", stdout=full)
        _, err = process.communicate(b"", timeout=30)
    assert process.returncode == 1
    assert err.count(b"\n") == 1
    assert err.startswith(b"edgellm: ")
