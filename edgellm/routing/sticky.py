"""Which conversations were escalated. A conversation is known by its messages: no ids, no text."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from edgellm.stream import Message, Request

# Far more conversations than one device holds at once; the oldest are forgotten.
REMEMBERED = 256


class Stickiness:
    """How many further turns of a conversation start remotely. Threads may share one."""

    def __init__(self) -> None:
        self._turns_left: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def left(self, request: Request) -> int:
        """The turns left for the conversation that this request goes on with."""
        # Without the new question and the answer before it stands what was asked last time.
        return self._turns_left.get(_key(request.messages[:-2]), 0)

    def note(self, request: Request, turns: int) -> None:
        """After this request so many turns are left."""
        if not request.messages or turns <= 0:
            return
        key = _key(request.messages)
        with self._lock:
            self._turns_left[key] = turns
            self._turns_left.move_to_end(key)
            while len(self._turns_left) > REMEMBERED:
                self._turns_left.popitem(last=False)


def _key(messages: Sequence[Message]) -> int:
    return hash(tuple(messages))
