"""The portable graph in plain ONNX Runtime, and the bundle's own tokenizer and template: what
every other runtime must give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgellm.bundle import template, tokenizer
from edgellm.stream import Message

Logits = NDArray[np.float32]
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


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

    def gap(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """How far a token of `answer` lies below the likeliest one, in logits; 0: never."""
        ids = [*prompt, *answer]
        logits, _ = self._step(ids, len(ids), self._empty)
        rows = logits[len(prompt) - 1 : -1]
        chosen = rows[np.arange(len(answer)), list(answer)]
        return float((rows.max(axis=-1) - chosen).max(initial=0))

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
