"""Where confidence packs are found: the user's own first, then those shipped with edgellm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.bundle.manifest import Manifest
from edgellm.errors import NotFound
from edgellm.routing.confidence.pack import Pack, load
from edgellm.settings import current

if TYPE_CHECKING:
    from edgellm.runtime.local import LocalBackend

SHIPPED = Path(__file__).parent.parent / "packs"


def weights_sha256(manifest: Manifest) -> str:
    """What a pack is bound to: the sha256 of the weights file behind the native graph."""
    return manifest.files[manifest.graphs["native"].data].sha256


def own_folder(home: Path) -> Path:
    return home / "router" / "packs"


def file_name(manifest: Manifest) -> str:
    """One name for each set of weights, readable and without a way out of its folder."""
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in manifest.name)
    return f"{name}-{weights_sha256(manifest)[:12]}.npz"


def confidence_pack(model: LocalBackend) -> Pack | None:
    """The pack of a loaded model, the user's own first; None when there is none for its weights."""
    try:
        return find(model.bundle.manifest, current().home_folder())
    except NotFound:
        return None


def find(manifest: Manifest, home: Path) -> Pack:
    """The pack for a bundle, checked against its weights. NotFound says how to make one."""
    name = file_name(manifest)
    for folder in (own_folder(home), *((SHIPPED,) if SHIPPED.is_dir() else ())):
        for path in sorted(folder.glob(f"*-{weights_sha256(manifest)[:12]}.npz")):
            pack = load(path)
            pack.check(weights_sha256(manifest))
            return pack
    raise NotFound(
        f"no confidence pack for {name.removesuffix('.npz')}; make one from graded prompts: "
        f"edgellm route calibrate {manifest.name} PROMPTS.jsonl"
    )
