"""The portable graph in plain ONNX Runtime, and the bundle's own tokenizer and template: what
every other runtime must give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgellm.bundle import template, tokenizer
from edgellm.stream import Message

Logits = NDArray[np.float32]
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class Plain:
    """A bundle's portable graph. `ends` are the ids that end an answer."""

    def __init__(self, graph: Path, ends: Sequence[int]) -> None:
        self._session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self._ends = frozenset(ends)
        self._empty = {
            given.name: np.zeros([d if isinstance(d, int) else _size(d) for d in given.shape],
                                 DTYPES[given.type])
            for given in self._session.get_inputs()
            if given.name.startswith("past_key_values.")
        }  # fmt: skip

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The likeliest ids after `prompt`, the ending one included, token by token."""
        past, fed, total, made = self._empty, list(prompt), 0, []
        while len(made) < new_tokens and not self._ends.intersection(made):
            total += len(fed)
            logits, past = self._step(fed, total, past)
            fed = [int(logits[-1].argmax())]
            made += fed
        return made

    def _step(
        self, ids: Sequence[int], total: int, past: dict[str, Any]
    ) -> tuple[Logits, dict[str, Any]]:
        feed = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            **past,
        }
        names = [output.name for output in self._session.get_outputs()]
        outputs = dict(zip(names, self._session.run(names, feed), strict=True))
        logits = outputs.pop("logits")[0].astype(np.float32)
        return logits, {
            name.replace("present.", "past_key_values."): value for name, value in outputs.items()
        }


def exact_graph(graph: Path) -> Path:
    """A copy of the graph, in a folder beside the bundle, that leaves activations float32."""
    model = onnx.load(graph, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    folder = graph.parent.parent.with_name(f"{graph.parent.parent.name}-exact")
    folder.mkdir()
    data = graph.with_name(f"{graph.name}_data")
    os.link(data, folder / data.name)
    onnx.save(model, folder / graph.name)
    return folder / graph.name


def _size(symbol: str) -> int:
    """transformers.js' rule for an empty cache: the batch by its name, anything else is past."""
    return 1 if symbol == "batch_size" else 0


def text_ids(bundle: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text."""
    words = tokenizer.read(bundle)
    return [words.encode(text) for text in texts]


def chat_ids(bundle: Path, chats: Sequence[Sequence[dict[str, str]]]) -> list[list[int]]:
    """The ids of each conversation's prompt."""
    words, chat = tokenizer.read(bundle), template.read(bundle)
    if chat is None:
        raise ValueError(f"{bundle} has no chat template")
    prompts = [chat.render([Message(**message) for message in messages]) for messages in chats]
    return [words.encode(prompt) for prompt in prompts]
