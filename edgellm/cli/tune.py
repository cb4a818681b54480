"""`edgellm tune`: which size, speed and quality a model can have on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.eval import document, load_options, open_logits, read_text, sha256
from edgellm.cli.export import Precision, calibrating
from edgellm.cli.options import gathered, refuse
from edgellm.runtime.options import LoadOptions

if TYPE_CHECKING:
    from edgellm.bench.tune import Candidate, Measured, Ruler, Workshop
    from edgellm.hub.convert import CalibrationOptions

WINDOW_TOKENS = 512
DECODED_TOKENS = 64
REPETITIONS = 5


def make_candidates(
    precision: tuple[str, ...], calibrated: tuple[str, ...], target_mb: tuple[float, ...]
) -> tuple[Candidate, ...]:
    """The Candidates of the arguments, none when none was named."""
    from edgellm.bench.tune import Candidate

    return (
        *(Candidate(name) for name in precision),
        *(Candidate(name, True) for name in calibrated),
        *(Candidate(target_mb=size) for size in target_mb),
    )


candidate_options = gathered(
    "candidates",
    make_candidates,
    click.option("--precision", type=Precision(), multiple=True, help="Try it."),
    click.option("--calibrated", type=Precision(), multiple=True, help="Try it calibrated."),
    click.option("--target-mb", type=float, multiple=True, metavar="MB", help="Try this size."),
)


@click.command("tune")
@click.argument("source")
@candidate_options
@click.option("-o", "--output", type=Path, metavar="DIR", help="Keep the bundles in DIR.")
@click.option("--calibration", type=Path, metavar="FILE", help="UTF-8 text; else its own words.")
@click.option("--calibration-tokens", type=int, metavar="N", help="How much of it. [16384]")
@click.option("--text", type=Path, metavar="FILE", help="Measure on it; else Python's help.")
@click.option("--tokens", type=int, default=2048, show_default=True, metavar="N", help="Score N.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
@load_options
def command(
    source: str,
    candidates: tuple[Candidate, ...],
    output: Path | None,
    calibration: Path | None,
    calibration_tokens: int | None,
    text: Path | None,
    tokens: int,
    json_: bool,
    load: LoadOptions,
) -> None:
    """Make SOURCE in several ways and measure size, speed and quality of each, here.

    SOURCE is what `edgellm export` takes. Every bundle is compared with float32, which needs room
    for it. A row that another beats in everything is marked. Activations for calibration are
    captured once, and a second run takes them over; with -o it takes the bundles over as well.

    \b
    edgellm tune ./my-model
    edgellm tune smollm2-135m --target-mb 86 --target-mb 92 --calibrated int4 -o ./tuned
    """
    refuse(tokens < 1, f"--tokens must be 1 or more, got {tokens}")
    from edgellm import settings
    from edgellm.bench import tune
    from edgellm.bench.quality import Scope, default_text

    home = settings.current({"offline": load.offline}).home_folder()
    scored = default_text() if text is None else read_text(text)
    plan = tune.decoding(DECODED_TOKENS, REPETITIONS)
    ruler = tune.Ruler(plan, Scope(tokens, WINDOW_TOKENS), scored, load)
    wanted = calibrating(home, calibration, calibration_tokens, None)
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(temporary(home)))
        rows = measure(workshop(source, folder, home, wanted, load.offline), ruler, candidates)
    if json_:
        click.echo(
            document({"source": source, "text_sha256": sha256(scored), "rows": rows_of(rows)})
        )
        return
    click.echo("\n".join(table(rows)))


def temporary(home: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for bundles that nobody wants to keep, on the store's disk."""
    home.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="tune.", dir=home)


def workshop(
    source: str, folder: Path, home: Path, wanted: CalibrationOptions, offline: bool
) -> Workshop:
    from edgellm.bench.tune import Workshop
    from edgellm.hub import Store, Terminal

    return Workshop(source, folder, Store(home), wanted, offline, Terminal())


def measure(shop: Workshop, ruler: Ruler, candidates: Sequence[Candidate]) -> list[Measured]:
    """The float32 bundle's row and one for each candidate, by falling size."""
    from edgellm.bench import tune
    from edgellm.bench.quality import evaluate
    from edgellm.bundle import manifest

    floats = shop.make(tune.Candidate(tune.REFERENCE))
    chosen = candidates or tune.defaults(manifest.read(floats).shape.parameters)
    folders = [floats, *(shop.make(candidate) for candidate in chosen)]
    speeds = []
    for folder in folders:
        shop.progress.notice(f"measuring the speed of {folder.name}")
        speeds.append(ruler.tokens_per_s(folder))
    rows = []
    with open_logits(str(floats), ruler.options) as reference:
        windows = ruler.windows(reference)
        for folder, speed in zip(folders, speeds, strict=True):
            shop.progress.notice(f"measuring the quality of {folder.name}")
            with open_logits(str(folder), ruler.options) as model:
                report = evaluate(windows, model, reference)
            rows.append(tune.measured(folder, speed, report))
    return sorted(rows, key=lambda row: -row.bytes)


def rows_of(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    from edgellm.bench.tune import dominated

    beaten = dominated(rows)
    return [row.to_json() | {"dominated_by": beaten.get(row.name)} for row in rows]


def table(rows: Sequence[Measured]) -> list[str]:
    """For a person."""
    from edgellm.bench.tune import dominated

    beaten = dominated(rows)
    lines = [f"{'':<20}{'MB':>9}{'tokens/s':>10}{'mean KL':>10}{'top-1':>8}{'perplexity':>12}"]
    for row in rows:
        report = row.report
        kl, top1 = report.kl_mean or 0.0, report.top1_agreement or 0.0
        note = f"  worse than {beaten[row.name]}" if row.name in beaten else ""
        lines.append(
            f"{row.name:<20}{row.bytes / 1e6:>9.1f}{row.tokens_per_s:>10.1f}{kl:>10.4f}"
            f"{top1:>8.1%}{report.perplexity:>12.2f}{note}"
        )
    return lines
