"""`edgellm show`: what a bundle is, what it holds, and how it was checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.errors import NotFound

if TYPE_CHECKING:
    from edgellm.bundle.manifest import Manifest


@click.command("show")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(model: str, as_json: bool) -> None:
    """Tell what MODEL is: its origin, shape, files and the check made at export.

    MODEL is a name in the store, any reference that was pulled, or a bundle folder.
    """
    from edgellm import settings
    from edgellm.bundle import manifest
    from edgellm.hub import Store, find_bundle
    from edgellm.hub.disk import tree_bytes

    folder = find_bundle(model, Store(settings.current().home_folder()))
    if folder is None:
        raise NotFound(f"{model} is not in the store; fetch it: edgellm pull {model}")
    found, size = manifest.read(folder), tree_bytes(folder)
    if as_json:
        answer = {"name": found.name, "path": str(folder), "bytes": size}
        click.echo(json.dumps(answer | {"manifest": asdict(found)}, ensure_ascii=False))
    else:
        click.echo("\n".join(described(found, folder, size)))


def described(found: Manifest, folder: Path, size_bytes: int) -> Iterator[str]:
    """The lines a person reads."""
    from edgellm.cli.terminal import one_line
    from edgellm.hub.disk import megabytes

    source, shape = found.source, found.shape
    facts = {
        "folder": folder,
        "size": f"{megabytes(size_bytes)} in {len(found.files)} files",
        "source": source.reference,
        "revision": source.revision,
        "sha256": source.sha256,
        "licence": source.licence or "unknown",
        "model": f"{shape.architecture}, {shape.parameters / 1e6:.1f} M parameters, "
        f"{shape.num_hidden_layers} layers, width {shape.hidden_size}",
        "heads": f"{shape.num_attention_heads}, {shape.num_key_value_heads} in the KV cache, "
        f"width {shape.head_dim}",
        "vocabulary": f"{shape.vocab_size} tokens",
        "context": f"{shape.context_length} tokens",
        "made by": found.producer,
    }
    yield one_line(found.name)
    yield from section({key: value for key, value in facts.items() if value is not None})
    yield "recipe"
    yield from section(found.recipe)
    yield "graphs"
    yield from section({name: f"{g.kind}: {g.path}" for name, g in found.graphs.items()})
    yield "self-check"
    yield from section(found.self_check or {"report": "none"})
    yield "files"
    yield from section(
        {path: f"{megabytes(f.bytes)}  sha256 {f.sha256[:16]}…" for path, f in found.files.items()}
    )


def section(facts: Mapping[str, Any]) -> Iterator[str]:
    """One indented line for each fact; nested ones are joined."""
    from edgellm.cli.terminal import one_line

    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        yield f"  {one_line(key).ljust(width)}  {one_line(shown(value))}"


def shown(value: Any) -> str:
    """A value from JSON as a person writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(inner) for inner in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
