"""The doors from the command line to local models; tests put scripted ones there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from edgellm.errors import NotFound, Refused
from edgellm.runtime.options import LoadOptions
from edgellm.stream import Event, Request, Sampling

if TYPE_CHECKING:
    from edgellm.routing.seams import Confidence


class LoadedModel(Protocol):
    """A Backend that is in memory, and what `run` and `chat` ask of it besides answers."""

    @property
    def name(self) -> str: ...

    @property
    def default_sampling(self) -> Sampling: ...

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]: ...


def open_backend(reference: str, options: LoadOptions) -> AbstractContextManager[LoadedModel]:
    """The model behind a reference, in memory until the `with` block is left."""
    from edgellm.runtime.local import load

    return load(reference, options)


def recommended_sampling(reference: str) -> Sampling | None:
    """What a model's makers recommend, None when it is not in the store. Fetches nothing."""
    from edgellm.bundle import generation
    from edgellm.runtime.local import find_folder

    try:
        return generation.read(find_folder(reference, LoadOptions(offline=True))).sampling
    except (NotFound, Refused):
        return None


def open_confidence(model: LoadedModel) -> Confidence | None:
    """The confidence pack of a model, the user's own first; None when there is none."""
    from edgellm.routing.confidence.library import confidence_pack
    from edgellm.runtime.local import LocalBackend

    return confidence_pack(model) if isinstance(model, LocalBackend) else None
