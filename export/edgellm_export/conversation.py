"""What the self-check says to a bundle: a text to be continued, and a talk of two questions."""

from __future__ import annotations

from pathlib import Path

from edgellm.bundle import template, tokenizer
from edgellm.bundle.manifest import Shape
from edgellm.errors import UsageError
from edgellm.stream import Message
from edgellm_export import fidelity
from edgellm_export.checks import SelfCheckFailed
from edgellm_export.progress import Notice

QUESTIONS = ("Hello", "Why is the sky blue?")
ANSWER = "Hello! How can I help you today?"
# Tokens of it that are in the cache when the second question comes.
ANSWERED = 8


def sample_ids(folder: Path, shape: Shape) -> list[int]:
    """The ids of the sample, as a prompt; its first line has come back as the same text."""
    words, text = tokenizer.read(folder), fidelity.sample()
    line = text.partition("\n")[0]
    if words.decode(words.encode(line)).strip() != line:
        raise SelfCheckFailed("the bundle failed its self-check: the tokenizer changes plain text")
    ids = words.encode(text, special=False, wrap=True)
    if max(ids) >= shape.vocab_size:
        raise SelfCheckFailed(
            f"the bundle failed its self-check: the tokenizer gives id {max(ids)}, the model has "
            f"{shape.vocab_size}"
        )
    return ids


def turns(folder: Path, shape: Shape, notice: Notice) -> tuple[list[int], list[int]]:
    """The ids of a first turn with some tokens of its answer, and of the conversation up to a
    second question. SelfCheckFailed when the chat template drops a question."""
    words, chat = tokenizer.read(folder), template.read(folder)
    first, second = QUESTIONS
    talk = [Message("user", first), Message("assistant", ANSWER), Message("user", second)]
    if chat is None:
        notice("this model has no chat template: it takes raw prompts only")
        texts = [first, f"{first}\n{ANSWER}\n{second}"]
    else:
        texts = [chat.render(talk[:1]), ""]
        if first not in texts[0]:
            raise SelfCheckFailed(
                "the bundle failed its self-check: the chat template drops what the user says"
            )
        try:
            texts[1] = chat.render(talk)
        except UsageError as error:
            notice(f"only single questions can be asked: {error}")
            texts[1] = f"{texts[0]}{ANSWER}\n{second}"
        if second not in texts[1]:
            raise SelfCheckFailed(
                "the bundle failed its self-check: the chat template drops the second question"
            )
    one, two = (words.encode(text)[: shape.context_length - ANSWERED] for text in texts)
    return one + words.encode(ANSWER)[:ANSWERED], two
