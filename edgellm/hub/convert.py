"""The hub's door to the exporter."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from edgellm.bundle.manifest import Source
from edgellm.errors import MissingExtra
from edgellm.hub.progress import Progress

_NEEDED = ("onnx_ir", "gguf")


class Converter(Protocol):
    def convert(
        self, source: Path, out: Path, origin: Source, name: str, precision: str | None
    ) -> None:
        """Fills the empty folder `out` with a bundle; `precision` None: what suits `source`."""
        ...


class Exporter:
    """`edgellm_export` as a Converter; MissingExtra when what it needs is not installed."""

    def __init__(self, progress: Progress) -> None:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise MissingExtra(
                f"making a bundle needs {' and '.join(missing)}: pip install 'edgellm[export]'"
            )
        self._progress = progress

    def convert(
        self, source: Path, out: Path, origin: Source, name: str, precision: str | None
    ) -> None:
        recipe = import_module("edgellm_export.recipe").Recipe
        import_module("edgellm_export.export").export_bundle(
            source,
            out,
            recipe=recipe() if precision is None else recipe(precision=precision),
            origin=origin,
            name=name,
            report=self._progress.notice,
        )
