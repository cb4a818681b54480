"""The one door from the command line to a model; tests put a scripted one behind it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from edgellm.runtime.options import LoadOptions
from edgellm.stream import Backend, Sampling


class LoadedModel(Backend, Protocol):
    """A Backend that is in memory, and what `run` and `chat` ask of it besides answers."""

    @property
    def name(self) -> str: ...

    @property
    def default_sampling(self) -> Sampling: ...


def open_backend(reference: str, options: LoadOptions) -> AbstractContextManager[LoadedModel]:
    """The model behind a reference, in memory until the `with` block is left."""
    from edgellm.runtime.local import load

    return load(reference, options)
