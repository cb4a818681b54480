"""The samples run as they stand, stay small, and use nothing but the public API."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgellm

SAMPLES = sorted((Path(__file__).parent.parent / "samples" / "python").glob("*.py"))
names = pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)


def run(path: Path, bundle: Path) -> str:
    """What the sample prints about `bundle`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), str(bundle)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "EDGELLM_OFFLINE": "1", "PYTHONUTF8": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@names
def test_a_sample_has_less_than_40_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40


@names
def test_a_sample_uses_only_the_public_api(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "edgellm"
    }
    assert used
    assert used <= set(edgellm.__all__)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.mark.weights
def test_hello_streams_an_answer(smollm2_bundle: Path) -> None:
    *answer, figures = run(SAMPLES[0].with_name("hello.py"), smollm2_bundle).splitlines()
    assert len(" ".join(answer)) > 20
    assert re.fullmatch(r"\[\d+ tokens, \d+ tokens/s\]", figures)


@pytest.mark.weights
def test_chat_reuse_takes_the_conversation_from_the_cache(smollm2_bundle: Path) -> None:
    output = run(SAMPLES[0].with_name("chat_reuse.py"), smollm2_bundle)
    found = re.findall(r"\[(\d+) prompt tokens, (\d+) from the cache\]", output)
    prompts, cached = zip(*[(int(prompt), int(reused)) for prompt, reused in found], strict=True)
    assert len(found) == 3
    # Each turn finds at least the whole prompt of the turn before.
    assert cached[1] >= prompts[0]
    assert cached[2] >= prompts[1]


@pytest.mark.weights
def test_logprobs_are_probabilities(smollm2_bundle: Path) -> None:
    output = run(SAMPLES[0].with_name("logprobs.py"), smollm2_bundle)
    assert "Paris" in output
    confidence = re.search(r"confidence (0\.\d\d|1\.00)", output)
    assert confidence is not None
