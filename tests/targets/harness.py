"""Bundles, and the runtimes that read them, each in a process and an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import environments
import pytest
import texts
import tiny_models as tiny
from environments import Unavailable
from plain import Plain, chat_ids, exact_graph, text_ids

from edgellm.bundle import manifest

HERE = Path(__file__).parent
RUNNERS = HERE / "runners"
NEW_TOKENS = 32
SECONDS = 600
MIXES = 300


@dataclass(frozen=True)
class Bundle:
    """A folder with what plain ONNX Runtime makes of it."""

    folder: Path
    graph: Path
    ends: list[int]
    texts: list[list[int]]
    chats: list[list[int]]
    answers: list[list[int]]
    exact_answers: list[list[int]]
    """With float32 activations, whatever accuracy_level the graph asks for."""


@dataclass(frozen=True)
class Answer:
    """What a runtime made of the same texts, chats and prompts."""

    versions: dict[str, str]
    texts: list[list[int]]
    chats: list[list[int]]
    answers: list[list[int]]
    extra: dict[str, Any]


Run = Callable[[Path, Path], list[str]]


def genai() -> Run:
    python = environments.python("genai", environments.GENAI)
    return lambda job, result: [str(python), str(RUNNERS / "genai.py"), str(job), str(result)]


def optimum() -> Run:
    python = environments.python("optimum", environments.OPTIMUM)
    return lambda job, result: [str(python), str(RUNNERS / "optimum.py"), str(job), str(result)]


def node() -> Run:
    return _javascript("node.mjs")


def chromium() -> Run:
    environments.chromium()
    return _javascript("chromium.mjs")


def _javascript(script: str) -> Run:
    folder = environments.node_modules()
    return lambda job, result: [
        *("node", str(RUNNERS / script), str(folder), str(job), str(result))
    ]


RUNTIMES: dict[str, Callable[[], Run]] = {
    "genai": genai,
    "optimum": optimum,
    "transformers.js-node": node,
    "transformers.js-chromium": chromium,
}


class Bundles:
    """Bundles by name, each made once in `folder`; `gguf` gives the real model's file."""

    def __init__(self, folder: Path, gguf: Callable[[], Path]) -> None:
        self._folder = folder
        self._gguf = gguf
        self._outside = dict(os.environ)
        self._made: dict[str, Bundle] = {}

    def __call__(self, name: str) -> Bundle:
        if name not in self._made:
            path = self._folder / name
            if name == "smollm2":
                with environments.environment(self._outside):
                    gguf = self._gguf()
                tiny.make_bundle(gguf, path, "exact")
            else:
                _make_tiny(name.removeprefix("tiny-"), path)
            self._made[name] = opened(path)
        return self._made[name]


def _make_tiny(name: str, path: Path) -> None:
    """A tiny random model; answers of some prompts end early on its second ending id."""
    recipe, _, kv = name.partition("-kv-")
    source = path.with_name(f"{path.name}-source")
    if recipe == "exact":
        tiny.make_bundle(tiny.write_gguf(source / "model.gguf"), path, recipe)
        return
    # 240: the second of two blocks of 128 is not full.
    inner = 240 if recipe == "int4_block128" else 128
    tiny.write_folder(source, replace(tiny.UNTIED, inner=inner, context=512))
    trial = path.with_name(f"{path.name}-trial")
    tiny.make_bundle(source, trial, recipe, kv=kv or None)
    ends = [2, early_end(opened(trial).answers)]
    settings = json.dumps({"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 2})
    (source / "generation_config.json").write_text(settings, encoding="utf-8")
    tiny.make_bundle(source, path, recipe, kv=kv or None)


def early_end(answers: Sequence[Sequence[int]]) -> int:
    """An id that comes late in one answer and in another never."""
    for answer in answers:
        for i in answer[4:]:
            if i not in answer[:4] and any(i not in other for other in answers):
                return i
    raise ValueError(f"no id ends one answer and not another: {answers}")


def opened(folder: Path) -> Bundle:
    graph = folder / manifest.read(folder).graphs["portable"].path
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    ends = generation["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    plain = Plain(graph, ends)
    chats = chat_ids(folder, texts.CHATS)
    exact = Plain(exact_graph(graph), ends)
    answers, exact_answers = (
        [without_end(session.greedy(prompt, NEW_TOKENS), ends) for prompt in chats]
        for session in (plain, exact)
    )
    every = text_ids(folder, [*texts.HARD, *texts.mixes(MIXES)])
    return Bundle(folder, graph, ends, every, chats, answers, exact_answers)


def without_end(answer: Sequence[int], ends: Sequence[int]) -> list[int]:
    """genai keeps the id that ended an answer to itself; the others show it last."""
    return list(answer[:-1] if answer and answer[-1] in ends else answer)


class Runs:
    """What a runtime makes of a bundle; each pair runs once. Skips, with the reason, where this
    machine cannot have the runtime."""

    def __init__(self, work: Callable[[str], Path]) -> None:
        self._work = work
        self._done: dict[tuple[str, Path], Answer] = {}
        self._commands: dict[str, Run | Unavailable] = {}
        self._outside = dict(os.environ)

    def __call__(self, runtime: str, bundle: Bundle) -> Answer:
        key = (runtime, bundle.folder)
        if key not in self._done:
            self._done[key] = _answer(self._command(runtime), bundle, self._work("job"))
        return self._done[key]

    def _command(self, runtime: str) -> Run:
        if runtime not in self._commands:
            with environments.environment(self._outside):
                try:
                    self._commands[runtime] = RUNTIMES[runtime]()
                except Unavailable as error:
                    self._commands[runtime] = error
        found = self._commands[runtime]
        if isinstance(found, Unavailable):
            pytest.skip(f"no {runtime}: {found}")
        return found


def _answer(run: Run, bundle: Bundle, work: Path) -> Answer:
    job, result = work / "job.json", work / "result.json"
    content = {
        "bundle": str(bundle.folder),
        "file": bundle.graph.name,
        "texts": [*texts.HARD, *texts.mixes(MIXES)],
        "chats": texts.CHATS,
        "prompts": bundle.chats,
        "new_tokens": NEW_TOKENS,
        "seconds": SECONDS,
    }
    if "chromium" in str(run(job, result)):
        content["chromium"] = str(environments.chromium())
    job.write_text(json.dumps(content), encoding="utf-8")
    # Loading is from the folder alone; a runtime that reaches for a hub must fail.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        run(job, result), env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(run(job, result))}\n{done.stdout}\n{done.stderr}"
    found = json.loads(result.read_text(encoding="utf-8"))
    parts = {name: found.pop(name) for name in ("versions", "texts", "chats", "answers")}
    parts["answers"] = [without_end(answer, bundle.ends) for answer in parts["answers"]]
    return Answer(**parts, extra=found)
