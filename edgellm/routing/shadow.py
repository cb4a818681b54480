"""Asking a remote as well, after the local answer was given: to learn what it would have said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

from edgellm.errors import EdgellmError
from edgellm.routing.seams import Ledger, Record
from edgellm.routing.sources import Events
from edgellm.stream import Delta, Replace


class Shadows:
    """The shadow calls under way, each in a thread of its own so that nobody waits for it."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def start(
        self, ask: Callable[[], Events], record: Callable[[str | None], Record], ledger: Ledger
    ) -> None:
        """Asks, and then writes the one record of the request, with what the remote said."""

        def run() -> None:
            ledger.record(record(_answer(ask)))

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=run, name="edgellm-shadow"))
        self._threads[-1].start()

    def wait(self) -> None:
        """Returns when all of them have ended; a remote's own limits bound how long that takes."""
        for thread in self._threads:
            thread.join()
        self._threads = []


def _answer(ask: Callable[[], Events]) -> str | None:
    """The whole text, None when there is none: a failed shadow is nobody's trouble."""
    text = ""
    try:
        with closing(ask()) as events:
            for event in events:
                match event:
                    case Delta():
                        text += event.text
                    case Replace():
                        text = ""
    except EdgellmError:
        return None
    return text
