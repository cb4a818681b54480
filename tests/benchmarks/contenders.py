"""Programs that measure speed inside one process: how each is called and what it answers.

Start-up and loading are outside every contender's clock. All are given the same tests, so each
process does the same work: every length at every depth, one warm-up and `repetitions` runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT, environment

# A round of one contender takes seconds; ten minutes are a hang.
TIMEOUT_SECONDS = 600

Key = tuple[str, int]
"""A test and its depth: ("tg128", 0)."""


@dataclass(frozen=True, slots=True)
class Load:
    """The tests that every contender runs in a round."""

    prompt_tokens: tuple[int, ...] = (512,)
    decode_tokens: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0, 512)
    threads: int = 2
    repetitions: int = 1

    def options(self) -> list[str]:
        """The same for all three programs."""
        lists = {"-p": self.prompt_tokens, "-n": self.decode_tokens, "-d": self.depths}
        words = [word for name, value in lists.items() for word in (name, _commas(value))]
        return [*words, "-r", str(self.repetitions)]


def _commas(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens per second by test, and which version of the program said so."""

    samples: dict[Key, list[float]]
    version: str


@dataclass(frozen=True, slots=True)
class Contender:
    """A program with its arguments; `read` understands what it prints."""

    name: str
    command: tuple[str, ...]
    read: Callable[[str], Answer]

    def run(self) -> Answer:
        """One round; SystemExit with the program's last words when it fails."""
        done = subprocess.run(
            self.command,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(),
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode:
            words = (done.stderr.strip().splitlines() or ["no message"])[-1]
            sys.exit(f"{self.name} failed ({done.returncode}): {words}")
        return self.read(done.stdout)


def edgellm(name: str, bundle: Path, load: Load) -> Contender:
    """This checkout's own `bench` on a bundle."""
    command = [sys.executable, "-m", "edgellm", "bench", str(bundle.resolve()), *load.options()]
    return Contender(
        name, (*command, "--threads", str(load.threads), "--offline", "--json"), read_edgellm
    )


def read_edgellm(out: str) -> Answer:
    document = json.loads(out)
    samples = {
        (row["test"], row["depth"]): row["tokens_per_s"]["samples"] for row in document["rows"]
    }
    return Answer(samples, f"onnxruntime {document['machine']['onnxruntime']}")


def llama_bench(name: str, program: Path, gguf: Path, load: Load) -> Contender:
    """llama-bench with its own defaults: weights repacked for this CPU, cache in float16."""
    command = [str(program), "-m", str(gguf.resolve()), *load.options()]
    return Contender(name, (*command, "-t", str(load.threads), "-o", "json"), read_llama_bench)


def read_llama_bench(out: str) -> Answer:
    rows = json.loads(out)
    samples = {}
    for row in rows:
        kind, tokens = ("pp", row["n_prompt"]) if row["n_prompt"] else ("tg", row["n_gen"])
        samples[f"{kind}{tokens}", row["n_depth"]] = row["samples_ts"]
    return Answer(samples, f"llama.cpp {rows[0]['build_commit']}")


def genai(name: str, python: Path, model: Path, load: Load) -> Contender:
    """onnxruntime-genai in the environment of `python` on a model folder of its builder."""
    program = Path(__file__).with_name("genai_speed.py")
    # Not resolved: the link is what makes it that environment's Python.
    command = [str(python.absolute()), str(program), "--model", str(model.resolve())]
    return Contender(name, (*command, *load.options(), "--threads", str(load.threads)), read_genai)


def read_genai(out: str) -> Answer:
    # The library may print before the document.
    document = json.loads(out.strip().splitlines()[-1])
    samples = {(row["test"], row["depth"]): row["samples"] for row in document["rows"]}
    return Answer(samples, f"onnxruntime-genai {document['version']}")
