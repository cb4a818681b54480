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

sys.path.append(str(Path(__file__).parent / "routing" / "servers"))

from launch import serve_scripted, write_answers

SAMPLES = sorted((Path(__file__).parent.parent / "samples" / "python").glob("*.py"))
names = pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)


def run(path: Path, bundle: Path, *arguments: str) -> str:
    """What the sample prints about `bundle`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), str(bundle), *arguments],
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


@pytest.mark.weights
def test_hybrid_asks_elsewhere_when_unsure_and_never_with_a_card(
    smollm2_bundle: Path, tmp_path: Path
) -> None:
    question = "Who ruled Burkina Faso in 1985?"
    answers = write_answers(tmp_path / "answers.jsonl", [(question, "Thomas Sankara", 0.0)])
    with serve_scripted(answers, "--accuracy", "1") as remote:
        sample = SAMPLES[0].with_name("hybrid.py")
        output = run(sample, smollm2_bundle, remote.url(), "big")
    told = re.findall(r"^  \[(local|remote): (.*)\]$", output, re.MULTILINE)
    assert len(told) == 3
    assert told[1][0] == "remote"
    assert "Thomas Sankara" in output
    assert told[2] == ("local", "cascade: found 1 card; stays here")
