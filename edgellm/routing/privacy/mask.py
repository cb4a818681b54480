"""Placeholders instead of what was found, and back again, also across the pieces of a stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from edgellm.routing.privacy.detectors import Finding
from edgellm.stream import Delta, Event, Replace

_PLACEHOLDER = re.compile(r"\[[A-Z]+(?:-[A-Z]+)?_\d+\]", re.IGNORECASE)
# The beginning of a placeholder at the end of a piece.
_BEGUN = re.compile(r"\[(?:[A-Z]+(?:-[A-Z]*)?(?:_\d*)?)?$", re.IGNORECASE)
LONGEST_PLACEHOLDER = 24


@dataclass(slots=True)
class Mask:
    """One conversation's placeholders: the same text has the same placeholder everywhere."""

    originals: dict[str, str] = field(default_factory=dict)
    _names: dict[tuple[str, str], str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def reserve(self, text: str) -> None:
        """Placeholders that the text has already are not used: they would be restored wrongly."""
        self._taken.update(found.upper() for found in _PLACEHOLDER.findall(text))

    def hide(self, text: str, findings: Iterable[Finding]) -> str:
        """The text with every finding replaced."""
        parts, at = [], 0
        for finding in findings:
            parts += [text[at : finding.start], self._name(finding, text)]
            at = finding.end
        return "".join([*parts, text[at:]])

    def _name(self, finding: Finding, text: str) -> str:
        original = text[finding.start : finding.end]
        key = finding.kind, original
        if key not in self._names:
            number = 1
            while (name := f"[{finding.kind.upper()}_{number}]") in self._taken:
                number += 1
            self._taken.add(name)
            self._names[key], self.originals[name] = name, original
        return self._names[key]

    def restore(self, text: str) -> str:
        """The text with every placeholder of ours replaced by what it stands for."""
        return _PLACEHOLDER.sub(lambda m: self.originals.get(m[0].upper(), m[0]), text)

    def restored(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events with placeholders restored; one that is cut waits for its rest."""
        held = ""
        for event in events:
            if isinstance(event, Delta):
                text, held = _parted(held + event.text)
                if text or event.logprobs:
                    yield replace(event, text=self.restore(text))
                continue
            if isinstance(event, Replace):
                held = ""
            elif held:
                yield Delta(self.restore(held))
                held = ""
            yield event


def _parted(text: str) -> tuple[str, str]:
    """The text before a placeholder that has only begun, and that beginning."""
    begun = _BEGUN.search(text, max(len(text) - LONGEST_PLACEHOLDER, 0))
    return (text[: begun.start()], text[begun.start() :]) if begun else (text, "")
