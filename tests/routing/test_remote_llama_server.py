"""The client against a server that is not ours: llama.cpp's, with the real SmolLM2.

It is found on the path, or by EDGELLM_TEST_LLAMA_SERVER; llama_cpp.server is taken as well.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.errors import ContextFull
from edgellm.routing.errors import RemoteFailed
from edgellm.routing.remote import RemoteBackend, RemoteOptions
from edgellm.routing.remote.options import CAPABILITIES
from edgellm.stream import Delta, Request, Sampling, Start, complete

# Read at import: a test sees no variable of ours.
SERVER = os.environ.get("EDGELLM_TEST_LLAMA_SERVER") or shutil.which("llama-server")
CONTEXT_TOKENS = 1024
ASK = Request(Request.user("What is the capital of France?").messages, None, 24, Sampling())

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        SERVER is None and importlib.util.find_spec("llama_cpp") is None,
        reason="no llama-server on the path, in EDGELLM_TEST_LLAMA_SERVER, nor llama_cpp.server",
    ),
]


def command(gguf: Path, port: int) -> list[str]:
    if SERVER is not None:
        return [SERVER, "-m", str(gguf), "-c", str(CONTEXT_TOKENS), "--port", str(port), "-t", "1"]
    module = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf)]
    return [*module, "--n_ctx", str(CONTEXT_TOKENS), "--port", str(port), "--n_threads", "1"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def url(smollm2_gguf: Path) -> Iterator[str]:
    port = free_port()
    silence = subprocess.DEVNULL
    process = subprocess.Popen(command(smollm2_gguf, port), stdout=silence, stderr=silence)
    try:
        address = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + 120
        while not answers(address + "/models"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("the server was found, and does not start")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def remote(url: str) -> RemoteBackend:
    can = CAPABILITIES - {"max_completion_tokens"}
    return RemoteBackend(RemoteOptions(url, "smollm2", capabilities=can))


def test_it_streams_with_usage(remote: RemoteBackend) -> None:
    events = list(remote.stream(ASK))
    assert isinstance(events[0], Start)
    assert len([event for event in events if isinstance(event, Delta)]) > 1
    answer = complete(events)
    assert answer.text.strip()
    assert 1 < answer.usage.completion_tokens <= 24
    assert 7 < answer.usage.prompt_tokens <= events[0].prompt_tokens
    assert "estimated" not in answer.route.reason
    # Greedy is greedy there too.
    assert complete(remote.stream(ASK)).text == answer.text


def test_it_goes_on_from_a_prefix_that_is_not_repeated(remote: RemoteBackend) -> None:
    answer = complete(remote.stream(ASK, "The capital of"))
    assert answer.text.startswith(" France is")


def test_it_completes_a_raw_prompt_with_log_probabilities(remote: RemoteBackend) -> None:
    request = Request(prompt="The capital of France is", max_tokens=4, sampling=Sampling())
    answer = complete(remote.stream(replace(request, logprobs=2)))
    assert answer.text.startswith(" Paris")
    assert answer.finish_reason == "length"
    assert len(answer.logprobs) >= 3
    assert all(token.logprob <= 0 and len(token.top) == 2 for token in answer.logprobs)


def test_a_prompt_beyond_its_context_is_context_full(remote: RemoteBackend) -> None:
    with pytest.raises(ContextFull, match="does not fit smollm2 at"):
        next(remote.stream(Request.user("count " * 3000)))


def test_it_is_cut_and_answers_again(remote: RemoteBackend) -> None:
    events = remote.stream(replace(ASK, max_tokens=900))
    assert isinstance(next(events), Start)
    events.close()
    assert complete(remote.stream(ASK)).text.strip()


def test_a_path_it_does_not_have_is_not_found(url: str) -> None:
    remote = RemoteBackend(RemoteOptions(url.replace("/v1", "/v9"), "smollm2"))
    with pytest.raises(Exception, match="404") as caught:
        next(remote.stream(ASK))
    assert not isinstance(caught.value, RemoteFailed)
