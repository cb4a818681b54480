"""What the user wants kept on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from edgellm.errors import UsageError
from edgellm.routing.privacy.detectors import KINDS

Mode = Literal["pin-local", "mask", "ask", "block", "off"]


@dataclass(frozen=True, slots=True)
class PrivacyOptions:
    """`mode` says what becomes of a request in which one of `kinds` is found:

    pin-local   this machine answers it, and the rest of the conversation
    mask        the finding is replaced by a placeholder, and put back into the answer
    ask         the user is asked, once for each text
    block       it is refused where the remote was wanted
    off         nothing is looked for

    `deny` are regular expressions (Python's, case ignored); text they match never leaves, whatever
    the mode. `hosts` are the only ones text may go to, in lower case; empty: those of the remotes
    that the user set.
    """

    mode: Mode = "pin-local"
    kinds: frozenset[str] = frozenset(KINDS)
    deny: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            known = ", ".join(get_args(Mode))
            raise UsageError(f"unknown privacy mode {self.mode!r}; known are {known}")
        unknown = sorted(self.kinds - set(KINDS))
        if unknown:
            raise UsageError(f"unknown kind {unknown[0]!r}; known are {', '.join(KINDS)}")
        for pattern in self.deny:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"--deny {pattern!r} is no regular expression: {error}") from error
