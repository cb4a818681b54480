"""`edgellm eval`: how good a model is on a text, alone and against a reference."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.options import gathered, make_load_options, refuse
from edgellm.errors import NotFound, StorageFailed, UsageError
from edgellm.runtime.options import LoadOptions

if TYPE_CHECKING:
    from edgellm.bench.quality import LogitsSource, Report, Window

WINDOW_TOKENS = 512


def make_options(
    ep: str | None, require_ep: bool | None, threads: int | None, offline: bool | None
) -> LoadOptions:
    """LoadOptions with room for one window."""
    return make_load_options(WINDOW_TOKENS, ep, require_ep, threads, offline)


load_options = gathered(
    "load",
    make_options,
    click.option("--ep", metavar="NAME|auto", help="Execution provider."),
    click.option("--require-ep", is_flag=True, default=None, help="Fail where --ep falls back."),
    click.option("--threads", type=int, metavar="N", help="Threads of the runtime."),
    click.option("--offline", is_flag=True, default=None, help="Fetch nothing."),
)


@click.command("eval")
@click.argument("model")
@click.option("--text", "file", type=Path, metavar="FILE", help="UTF-8 text; else Python's help.")
@click.option("--reference", metavar="BUNDLE", help="Measure the distance from this model.")
@click.option("--tokens", type=int, default=4096, show_default=True, metavar="N", help="Score N.")
@click.option("--all", "score_all", is_flag=True, help="Score all of a window, not its 2nd half.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
@load_options
def command(
    model: str,
    file: Path | None,
    reference: str | None,
    tokens: int,
    score_all: bool,
    json_: bool,
    load: LoadOptions,
) -> None:
    """Measure the quality of MODEL on a text.

    Perplexity, and with --reference the mean and 99th percentile of the KL divergence and how
    often both prefer the same token. The text is cut into windows of 512 tokens, of which the
    second half is scored.

    \b
    edgellm eval smollm2-135m
    edgellm eval ./smollm2-int4 --reference ./smollm2-fp32 --json
    """
    refuse(tokens < 1, f"--tokens must be 1 or more, got {tokens}")
    from edgellm.bench.quality import Scope, default_text, evaluate, text_windows

    text = default_text() if file is None else read_text(file)
    with ExitStack() as stack:
        names = [model] if reference is None else [model, reference]
        sources = [stack.enter_context(open_logits(name, load)) for name in names]
        planned = text_windows(text, Scope(tokens, WINDOW_TOKENS, score_all), sources)
        report = evaluate(progress(planned), *sources)
    fields = {**asdict(report), "text_sha256": sha256(text), "reference": reference}
    click.echo(document(fields) if json_ else table(report, fields))


def open_logits(reference: str, options: LoadOptions) -> AbstractContextManager[LogitsSource]:
    """The door to a model; tests put a scripted one behind it."""
    from edgellm.runtime import local

    opened: AbstractContextManager[LogitsSource] = local.open_logits(reference, options)
    return opened


def read_text(file: Path) -> str:
    """The text in `file`; NotFound or UsageError when it cannot be read as UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFound(f"there is no text file {file}; give --text FILE") from error
    except OSError as error:
        raise StorageFailed(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not valid UTF-8 at byte {error.start}; convert it") from error


def progress(windows: list[Window]) -> Any:
    """The windows, with a bar on stderr where that is a terminal."""
    from tqdm import tqdm

    return tqdm(windows, unit="window", leave=False, disable=None)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def document(fields: dict[str, Any]) -> str:
    """One JSON document; a figure beyond all numbers is null, six digits say all there is."""
    return json.dumps({name: _plain(value) for name, value in fields.items()}, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def table(report: Report, fields: dict[str, Any]) -> str:
    """Two columns for a person."""
    lines = [("perplexity", f"{report.perplexity:.3f}")]
    if report.kl_mean is not None:
        lines += [
            ("mean KL", f"{report.kl_mean:.6f} nats"),
            ("99th percentile KL", f"{report.kl_p99:.6f} nats"),
            ("same best token", f"{report.top1_agreement:.2%}"),
            ("reference", fields["reference"]),
        ]
    lines += [("tokens scored", str(report.tokens)), ("text sha256", fields["text_sha256"])]
    return "\n".join(f"{name:<20}{value}" for name, value in lines)
