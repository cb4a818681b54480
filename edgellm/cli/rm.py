"""`edgellm rm`: remove models from the store."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from edgellm.errors import NotFound, UsageError

if TYPE_CHECKING:
    from edgellm.hub import Store


@click.command("rm")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(models: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove MODELs from the store.

    Each is a name that `edgellm models` lists, or a reference that was pulled. All are looked up
    before the first is removed.
    """
    from edgellm import settings
    from edgellm.hub import Store, Terminal

    store = Store(settings.current().home_folder())
    names = list(dict.fromkeys(stored_name(model, store) for model in models))
    if not yes:
        if not has_terminal():
            raise UsageError("rm asks before it removes; without a terminal say --yes")
        if not click.confirm(f"Remove {', '.join(names)}?", err=True):
            return
    freed = {name: store.remove(name, Terminal()) for name in names}
    if as_json:
        click.echo(json.dumps({"removed": names, "freed_bytes": sum(freed.values())}))
    else:
        for name, size_bytes in freed.items():
            click.echo(f"removed {name}, {size_bytes / 1e6:.1f} MB freed")


def has_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def stored_name(model: str, store: Store) -> str:
    """The store's name for `model`; a bundle outside the store is not ours to remove."""
    from edgellm.hub import Alias, find_bundle, parse

    reference = parse(model)
    # A name is enough: what lost its manifest must be removable too.
    if isinstance(reference, Alias) and store.folder(reference.name).is_dir():
        return reference.name
    folder = find_bundle(model, store)
    if folder is None:
        raise NotFound(f"{model} is not in the store; edgellm models lists what is")
    if folder.absolute().parent != (store.home / "models").absolute():
        raise UsageError(f"{model} lies outside the store; delete that folder yourself")
    return folder.name
