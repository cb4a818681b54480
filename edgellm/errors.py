"""The error tree. A message says what happened, how much, and what to do next, in one line.

EdgellmError              exit 1   something failed
├── UsageError            exit 2   the question itself is wrong (also a ValueError)
├── Refused               exit 3   a policy or a limit the user set says no
│   ├── ContextFull                the prompt does not fit
│   ├── MemoryShort                the plan does not fit this machine
│   ├── PrivacyBlocked             the text holds what must not leave this machine
│   └── BudgetExhausted            the answer would cost more than the user allows
├── NotFound              exit 4   no such model, file or device
│   └── Unreachable                the network or the other machine does not answer
├── Corrupt               exit 5   a file is damaged, unsafe or lies about its contents
│   └── Incompatible               a sound file that this version cannot use
├── StorageFailed         exit 1   disk full, no permission, lock held
└── MissingExtra          exit 1   a package of an optional extra is not installed
"""

from __future__ import annotations


class EdgellmError(Exception):
    """Base of all that edgellm raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(EdgellmError, ValueError):
    exit_code = 2


class Refused(EdgellmError):
    exit_code = 3


class ContextFull(Refused):
    pass


class MemoryShort(Refused):
    pass


class PrivacyBlocked(Refused):
    pass


class BudgetExhausted(Refused):
    pass


class NotFound(EdgellmError):
    exit_code = 4


class Unreachable(NotFound):
    pass


class Corrupt(EdgellmError):
    exit_code = 5


class Incompatible(Corrupt):
    pass


class StorageFailed(EdgellmError):
    pass


class MissingExtra(EdgellmError):
    pass
