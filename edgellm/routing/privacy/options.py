"""What the user wants kept on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgellm.errors import UsageError
from edgellm.routing.options import PRIVACY_MODES, PrivacyMode
from edgellm.routing.privacy.detectors import KINDS


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

    mode: PrivacyMode = "pin-local"
    kinds: frozenset[str] = frozenset(KINDS)
    deny: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.mode not in PRIVACY_MODES:
            known = ", ".join(PRIVACY_MODES)
            raise UsageError(f"unknown privacy mode {self.mode!r}; known are {known}")
        unknown = sorted(self.kinds - set(KINDS))
        if unknown:
            raise UsageError(f"unknown kind {unknown[0]!r}; known are {', '.join(KINDS)}")
        for pattern in self.deny:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"--deny {pattern!r} is no regular expression: {error}") from error
