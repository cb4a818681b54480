"""Chat templates: messages to the prompt text a model was trained on.

    ChatTemplate.render ──▶ Renderer ──▶ Worker ══ pipe ══ template_worker, a limited process

The worker starts in about 50 ms while the caller goes on (`Renderer.warm`) and then serves every
turn in well under a millisecond. This process never loads jinja2.
"""

from __future__ import annotations

import atexit
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgellm.bundle.template_process import Limits, Worker, WorkerGone
from edgellm.errors import Corrupt, UsageError
from edgellm.stream import Message

FILE_NAME = "chat_template.jinja"
CONFIG_NAME = "tokenizer_config.json"
# The longest published ones have some 20 kB; tokenizer_config.json may list every added token.
TEMPLATE_LIMIT_BYTES = 1 << 20
CONFIG_LIMIT_BYTES = 32 << 20
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Renderer:
    """Renders templates in a worker process that is started when first needed.

    Threads may share one; they take turns. `python` names the interpreter to run, for a host
    program that is not one itself.
    """

    def __init__(self, limits: Limits | None = None, python: str | None = None) -> None:
        self._limits = limits or Limits()
        self._python = python
        self._worker: Worker | None = None
        self._lock = threading.RLock()

    def warm(self) -> None:
        """Starts the worker without waiting for it."""
        self._living()

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The rendered text.

        UsageError when the template itself refuses the messages; Corrupt when it is broken or
        takes more than the limits; EdgellmError when no worker can be started.
        """
        with self._lock:
            try:
                reply = self._living().ask({"template": template, "variables": dict(variables)})
            except WorkerGone as gone:
                self.close()
                raise Corrupt(_broken(str(gone))) from gone
            except BaseException:
                # Half an exchange (Ctrl-C) would answer the next question with this one's answer.
                self.close()
                raise
        return _text(reply)

    def close(self) -> None:
        """Ends the worker; a later `render` starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
            self._worker = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _living(self) -> Worker:
        with self._lock:
            if self._worker is None or not self._worker.alive:
                self.close()
                self._worker = Worker(self._limits, self._python)
            return self._worker


def _text(reply: Mapping[str, Any]) -> str:
    match reply:
        case {"text": str(text)}:
            return text
        case {"refused": str(why)}:
            raise UsageError(f"the model's chat template refuses these messages: {why}")
        case {"broken": str(why)}:
            raise Corrupt(_broken(why))
    raise Corrupt(_broken("the worker's answer makes no sense"))


def _broken(why: str) -> str:
    return f"the model's chat template cannot be used: {why}; repair it, or use a raw prompt"


@lru_cache(maxsize=1)
def shared() -> Renderer:
    """The renderer of this process. It ends with the process."""
    renderer = Renderer()
    atexit.register(renderer.close)
    return renderer


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's text, and the special tokens it may name, such as bos_token."""

    text: str
    special: Mapping[str, str] = field(default_factory=dict)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        renderer: Renderer | None = None,
    ) -> str:
        """The prompt for `messages`; errors as in `Renderer.render`.

        add_generation_prompt: the text ends where the assistant's answer begins.
        """
        variables = {
            **self.special,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return (renderer or shared()).render(self.text, variables)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """The prompt that `template` makes of `messages`; see `ChatTemplate.render`."""
    special = {"bos_token": bos, "eos_token": eos}
    return ChatTemplate(template, special).render(
        messages, add_generation_prompt=add_generation_prompt
    )


def read(folder: Path) -> ChatTemplate | None:
    """The chat template of a bundle folder, None when it has none; Corrupt when it is damaged.

    chat_template.jinja goes before the one inside tokenizer_config.json, as in transformers.
    """
    config = _config(folder / CONFIG_NAME)
    path = folder / FILE_NAME
    text = _bounded(path, TEMPLATE_LIMIT_BYTES) if path.is_file() else _inside(config)
    return None if text is None else ChatTemplate(text, _special(config))


def has_template(folder: Path) -> bool:
    """Whether a bundle folder has a chat template; without one only raw prompts work."""
    return read(folder) is not None


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_bounded(path, CONFIG_LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not valid JSON: {error}; export the model again") from error
    if not isinstance(config, dict):
        raise Corrupt(f"{path} must hold an object; export the model again")
    return config


def _bounded(path: Path, limit_bytes: int) -> str:
    if path.stat().st_size > limit_bytes:
        raise Corrupt(f"{path} is larger than {limit_bytes} bytes; export the model again")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path} is not UTF-8 text: {error}; export the model again") from error


def _inside(config: Mapping[str, Any]) -> str | None:
    match config.get("chat_template"):
        case None:
            return None
        case str(text):
            return text
        case list(named):
            found = [t for t in named if isinstance(t, dict) and t.get("name") == "default"]
            if found and isinstance(found[0].get("template"), str):
                return str(found[0]["template"])
            return None
    raise Corrupt(f"chat_template in {CONFIG_NAME} must be text; export the model again")


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    special = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            special[name] = content
    return special
