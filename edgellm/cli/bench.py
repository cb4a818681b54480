"""`edgellm bench`: how fast a model runs here, measured as llama-bench does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.options import gathered, make_load_options
from edgellm.runtime.options import LoadOptions
from edgellm.settings import current

if TYPE_CHECKING:
    from edgellm.bench.speed import Loaded, Plan, Row
    from edgellm.bench.speed_report import Figures, Subject


class Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them."""

    name = "N,N,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        # int() would take underscores, signs and the digits of other scripts.
        if not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
            self.fail(f"{value!r} must be numbers of tokens with commas between them", param, ctx)
        return tuple(int(part) for part in parts)


def make_plan(
    prompt: tuple[tuple[int, ...], ...],
    decode: tuple[tuple[int, ...], ...],
    depth: tuple[tuple[int, ...], ...],
    repetitions: int,
) -> Plan:
    """The Plan of the arguments; UsageError when it is impossible or empty."""
    from edgellm.bench.speed import Plan

    return Plan(sum(prompt, ()), sum(decode, ()), sum(depth, ()), repetitions)


def counts(*names: str, default: int, text: str) -> Any:
    """An option that takes a list, may be given several times, and shows its default."""
    return click.option(
        *names, type=Counts(), multiple=True, default=((default,),), help=f"{text} [{default}]"
    )


plan_options = gathered(
    "plan",
    make_plan,
    counts("-p", "--prompt", default=512, text="Tokens to prefill; 0: no such test."),
    counts("-n", "--decode", default=128, text="Tokens to decode; 0: no such test."),
    counts("-d", "--depth", default=0, text="Tokens in the cache before."),
    click.option("-r", "--repetitions", type=int, default=5, metavar="N", help="Runs. [5]"),
)


def make_options(
    ep: str | None, require_ep: bool | None, threads: int | None, offline: bool | None
) -> LoadOptions:
    """LoadOptions without a context: the plan sets it."""
    return make_load_options(None, ep, require_ep, threads, offline)


load_options = gathered(
    "options",
    make_options,
    click.option("--ep", metavar="NAME|auto", help="Execution provider."),
    click.option("--require-ep", is_flag=True, default=None, help="Fail where --ep falls back."),
    click.option("--threads", type=int, metavar="N", help="Threads of the runtime."),
    click.option("--offline", is_flag=True, default=None, help="Fetch nothing."),
)


@click.command("bench")
@click.argument("model", required=False)
@plan_options
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
@load_options
def command(model: str | None, plan: Plan, json_: bool, options: LoadOptions) -> None:
    """Measure the speed of MODEL in tokens per second.

    pp is prefill, tg is decoding, each a forward pass without sampling; d is the depth, the
    tokens in the cache before the clock starts. Lists have commas or repeat the option.

    \b
    edgellm bench smollm2-135m
    edgellm bench smollm2-135m -p 512 -n 128 -d 0,512 -r 10 --json
    """
    from edgellm.bench import speed_report

    loaded = open_speed(model or current().model, plan, options)
    if loaded.session.notice:
        click.echo(loaded.session.notice, err=True)
    subject = describe(loaded)
    rows: list[Row] = []
    if json_:
        figures = run(loaded, plan, rows)
        click.echo(json.dumps(speed_report.document(subject, rows, figures), allow_nan=False))
        return
    click.echo("\n".join(speed_report.heading()))
    figures = run(loaded, plan, rows, subject)
    click.echo("\n".join(("", *speed_report.notes(figures, rows))))


def open_speed(reference: str, plan: Plan, options: LoadOptions) -> Loaded:
    """The door to a model; tests put a scripted one behind it."""
    from edgellm.bench.speed import load

    return load(reference, plan, options)


def describe(loaded: Loaded) -> Subject:
    """What is being measured, on what."""
    from edgellm.bench.speed_report import Subject
    from edgellm.device import detect
    from edgellm.runtime.session import load_onnxruntime

    return Subject(
        manifest=loaded.bundle.manifest,
        bundle_sha256=loaded.bundle_sha256,
        backends=tuple(loaded.session.placement()),
        threads=loaded.threads,
        machine=detect.machine(),
        onnxruntime=load_onnxruntime().__version__,
    )


def run(loaded: Loaded, plan: Plan, rows: list[Row], shown: Subject | None = None) -> Figures:
    """The figures, having filled `rows`; each row is printed at once when `shown` is given."""
    from edgellm.bench import bandwidth, speed
    from edgellm.bench.speed_report import Figures, line
    from edgellm.device import detect

    shape = loaded.bundle.manifest.shape
    first_ms = speed.first_token_ms(loaded.session, shape, plan)
    for row in speed.measure(loaded.session, shape, plan):
        rows.append(row)
        if shown is not None:
            click.echo(line(shown, row))
    # Before the buffer that the bandwidth is measured with.
    peak_mb = detect.peak_rss_mb()
    read = bandwidth.read_gb_s(loaded.threads, detect.available_memory_mb())
    found = bandwidth.bandwidth(rows, loaded.bundle, read)
    return Figures(loaded.load_ms, first_ms, peak_mb, found)
