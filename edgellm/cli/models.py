"""`edgellm models`: what the store holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgellm.hub import Entry


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """List the models in the store."""
    from edgellm import settings
    from edgellm.hub import Store

    store = Store(settings.current().home_folder())
    rows = [row(entry) for entry in store.entries()]
    if as_json:
        click.echo(json.dumps({"home": str(store.home), "models": rows}, ensure_ascii=False))
    elif rows:
        click.echo(table(rows))
    else:
        click.echo("no models yet; fetch one: edgellm pull smollm2-135m", err=True)
    for damaged in (row for row in rows if row["problem"]):
        click.echo(f"{damaged['name']} is damaged: {damaged['problem']}", err=True)


def row(entry: Entry) -> dict[str, Any]:
    """The facts about one bundle; source and licence None when its manifest cannot be read."""
    source = entry.manifest.source if entry.manifest else None
    modified = datetime.fromtimestamp(entry.modified_unix_seconds, UTC)
    return {
        "name": entry.name,
        "bytes": entry.size_bytes,
        "source": source.reference if source else None,
        "licence": source.licence if source else None,
        "modified": modified.isoformat(timespec="seconds"),
        "problem": entry.problem,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns with a heading, for people."""
    from edgellm.cli.terminal import one_line
    from edgellm.hub.disk import megabytes

    lines = [("NAME", "SIZE", "LICENCE", "MODIFIED", "SOURCE")]
    for found in rows:
        source = one_line(found["source"] or "damaged")
        licence, modified = one_line(found["licence"] or "unknown"), found["modified"][:10]
        lines.append((found["name"], megabytes(found["bytes"]), licence, modified, source))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]
        )
        for line in lines
    )
