"""The lines of a chat that a person types.

prompt_toolkit is imported here and nowhere else, and this module by `chat` on a terminal alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from edgellm.cli import Terminated
from edgellm.cli.repl import is_open
from edgellm.cli.slash import COMMANDS, PARAMETERS

# The empty line sets a question apart from the answer before it.
PROMPT = "\n>>> "
CONTINUED = "... "
WITH_PATH = ("/read", "/load", "/save")


def person(history: History) -> Callable[[], str]:
    """A reader that asks at the terminal; EOFError is Ctrl-D, KeyboardInterrupt is Ctrl-C."""
    session: PromptSession[str] = PromptSession(
        message=[("bold", PROMPT)],
        prompt_continuation=CONTINUED,
        placeholder=_placeholder,
        history=history,
        completer=SlashCompleter(),
        complete_while_typing=False,
        multiline=True,
        key_bindings=_keys(),
        # The prompt is not an answer: it goes to stderr when stdout is a file.
        output=create_output(always_prefer_tty=True),
    )

    def ask() -> str:
        before = signal.getsignal(signal.SIGTERM)
        try:
            return session.prompt(pre_run=_leave_on_sigterm)
        finally:
            # The event loop took the handler with it when it closed.
            signal.signal(signal.SIGTERM, before)

    return ask


def _leave_on_sigterm() -> None:
    # An exception raised inside the event loop would be shown there and wait for a key.
    with suppress(NotImplementedError):
        leave = partial(get_app().exit, exception=Terminated)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)


def _placeholder() -> StyleAndTextTuples:
    # A prompt that was left keeps no trace of it on the screen.
    return [] if get_app().is_done else [("ansibrightblack", "Ask something, or /help")]


def _keys() -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.newline(copy_margin=False)
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c", filter=typing)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


class SlashCompleter(Completer):
    """Completes commands, file names after those that take one, and parameters after /set."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        word, space, rest = document.text_before_cursor.partition(" ")
        if space and word in WITH_PATH:
            yield from self._paths.get_completions(Document(rest), complete_event)
            return
        known = PARAMETERS if space and word == "/set" else () if space else COMMANDS
        typed = rest if space else word
        for name in known:
            if (typed or space) and name.startswith(typed):
                yield Completion(name, start_position=-len(typed))


class PrivateHistory(FileHistory):
    """A history file nobody else can read. A full disk costs the line, not the chat."""

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            return


def history(path: Path) -> History:
    """The history in `path`, or one in memory where that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.close(handle)
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return PrivateHistory(str(path))
