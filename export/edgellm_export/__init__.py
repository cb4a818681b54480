"""The exporter: a checkpoint becomes a bundle.

    import edgellm_export
    edgellm_export.export("model.gguf", "int4", "out")

It lives on a workstation; the runtime never needs it.

checkpoint/  files → Checkpoint          store     weights → data file, as the recipe says
recipe       what becomes of a weight    arch/     one file per architecture → graph
recipes/     those that ship, as files   fidelity  how far from the float weights on text
verify       the self-check              pipeline  all of it, in order
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.bundle.manifest import Manifest


def export(source: str | Path, recipe: str | None, out_dir: str | Path) -> Manifest:
    """The manifest of the bundle made from a local checkpoint in `out_dir`, a new folder.

    `recipe` is one of recipe.names() or the path of a .toml, None for what suits the source.
    Errors as in pipeline.export_bundle; after one, `out_dir` holds no bundle.
    """
    from edgellm.bundle.manifest import Source
    from edgellm_export import recipe as recipes
    from edgellm_export.pipeline import Job, export_bundle

    out, checkpoint = Path(out_dir), Path(source)
    chosen = recipes.recipe(recipe) if recipe else None
    out.mkdir(parents=True)
    return export_bundle(Job(checkpoint, chosen, Source(checkpoint.name), out.name), out)
