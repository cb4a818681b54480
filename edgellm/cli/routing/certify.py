"""`edgellm route certify`: the threshold that keeps a risk, or that there is none."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.runtime.options import LoadOptions
from edgellm.settings import current

if TYPE_CHECKING:
    from edgellm.bundle.manifest import Manifest
    from edgellm.routing.confidence.pack import Pack


@click.command("certify")
@click.argument("model", required=False)
@click.option("--pack", type=Path, metavar="FILE", help="This pack; else the model's own.")
@click.option(
    "--risk", type=float, default=0.1, show_default=True, metavar="R", help="Wrong among kept."
)
@click.option(
    "--confidence", type=float, default=0.95, show_default=True, metavar="C", help="How sure."
)
@click.option("--offline", is_flag=True, default=None, help="Fetch nothing.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(
    model: str | None,
    pack: Path | None,
    risk: float,
    confidence: float,
    offline: bool | None,
    json_: bool,
) -> None:
    """Certify how many answers of MODEL can stay local at a risk.

    Of the answers kept, at most R are wrong, with probability C over the graded prompts behind the
    pack: as long as the prompts to come are like those. Exit code 3 when nothing can be certified.

    \b
    edgellm route certify smollm2-135m --risk 0.10 --confidence 0.95
    """
    manifest = opened(model or current().model, offline)
    found = pack_of(manifest, pack)
    certificate = found.certify(risk, confidence)
    if json_:
        click.echo(json.dumps({**asdict(certificate), "about": asdict(found.about)}))
    else:
        click.echo(certificate.line())
        about = found.about
        click.echo(
            f"pack {about.model} {about.precision}, weights {about.weights_sha256[:12]}, "
            f"{certificate.graded} graded answers kept aside of {about.graded}"
        )
    if certificate.threshold is None:
        raise click.exceptions.Exit(3)


def opened(reference: str, offline: bool | None) -> Manifest:
    """The manifest of a model, fetched and converted first when the store does not have it."""
    from edgellm.bundle import manifest
    from edgellm.runtime.local import find_folder

    settings = current({"offline": offline})
    return manifest.read(find_folder(reference, LoadOptions(offline=settings.offline)))


def pack_of(manifest: Manifest, path: Path | None) -> Pack:
    """The pack in `path`, else the one found for the bundle; it belongs to these weights."""
    from edgellm.routing.confidence.library import find, weights_sha256
    from edgellm.routing.confidence.pack import load

    if path is None:
        return find(manifest, current().home_folder())
    pack = load(path)
    pack.check(weights_sha256(manifest))
    return pack
