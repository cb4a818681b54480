"""`edgellm route calibrate`: from the user's graded prompts to a confidence pack."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.options import gathered, load_options, refuse
from edgellm.errors import StorageFailed
from edgellm.runtime.options import LoadOptions
from edgellm.settings import current

if TYPE_CHECKING:
    from edgellm.routing.confidence.pack import Pack
    from edgellm.runtime.local import LocalBackend


@dataclass(frozen=True, slots=True)
class Goal:
    """What the threshold is chosen for: one of a certified risk, a share of remote answers, or
    what 1,000 prompts may cost at a price for each remote answer."""

    risk: float | None = None
    confidence: float = 0.95
    share: float | None = None
    budget_usd: float | None = None
    answer_usd: float | None = None

    def __post_init__(self) -> None:
        given = [g for g in (self.risk, self.share, self.budget_usd) if g is not None]
        refuse(len(given) > 1, "give one of --risk, --share and --budget")
        refuse(
            (self.budget_usd is None) != (self.answer_usd is None),
            "--budget (USD per 1,000 prompts) and --answer-usd (USD per remote answer) go together",
        )
        for name in ("risk", "share"):
            value = getattr(self, name)
            refuse(value is not None and not 0 < value < 1, f"--{name} must be between 0 and 1")
        for name in ("budget_usd", "answer_usd"):
            value = getattr(self, name)
            refuse(value is not None and not value > 0, f"--{name.split('_')[0]} must be above 0")


goal_options = gathered(
    "goal",
    Goal,
    click.option("--risk", type=float, metavar="R", help="At most R wrong of those kept. [0.1]"),
    click.option("--confidence", type=float, default=0.95, metavar="C", help="How sure. [0.95]"),
    click.option("--share", type=float, metavar="S", help="Send this share of prompts."),
    click.option("--budget", "budget_usd", type=float, metavar="USD", help="For 1,000 prompts."),
    click.option("--answer-usd", type=float, metavar="USD", help="Price of a remote answer."),
)


@click.command("calibrate")
@click.argument("model")
@click.argument("prompts", type=Path)
@click.option("-o", "--output", type=Path, metavar="FILE", help="Else where the router looks.")
@goal_options
@load_options
@click.option("--json", "json_", is_flag=True, help="Print one JSON document.")
def command(
    model: str,
    prompts: Path,
    output: Path | None,
    goal: Goal,
    load: LoadOptions,
    json_: bool,
) -> None:
    """Let MODEL answer graded PROMPTS and learn when it is right.

    PROMPTS is JSONL: {"prompt": "...", "answer": "..." or [...], "grader": "lenient"}, graders are
    exact, lenient, number, json and regex. A third of the answers is kept aside for certificates.
    Nothing leaves this machine.

    \b
    edgellm route calibrate smollm2-135m mine.jsonl --risk 0.10
    """
    from edgellm.routing.confidence.calibrate import make_pack
    from edgellm.routing.confidence.pack import save
    from edgellm.routing.evaluation.grading import answers, read_prompts
    from edgellm.routing.evaluation.records import Records

    asked = read_prompts(prompts)
    from edgellm.runtime.local import load as load_model

    with load_model(model, load) as backend, _bar(len(asked)) as bar:
        graded = tuple(answers(backend, asked, lambda done: bar.update(1)))
        records = Records(_meta(backend), graded)
        path = output or _default_path(backend)
    pack = make_pack(records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(pack, path)
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error.strerror or error}") from error
    found = threshold(pack, goal)
    accuracy = float(records.correct.mean())
    if json_:
        document = {"pack": str(path), "graded": len(graded), "local_accuracy": accuracy}
        click.echo(json.dumps({**document, **found, "about": asdict(pack.about)}))
        return
    click.echo(f"{len(graded)} answers, {accuracy:.1%} of them right; pack: {path}")
    click.echo(found["line"])


def threshold(pack: Pack, goal: Goal) -> dict[str, Any]:
    """The threshold for the goal and a line that says it."""
    import numpy as np

    if goal.share is None and goal.budget_usd is None:
        certificate = pack.certify(goal.risk or 0.1, goal.confidence)
        return {"threshold": certificate.threshold, "line": certificate.line()}
    if goal.share is not None:
        share, why = goal.share, "the share asked for"
    else:
        share = min((goal.budget_usd or 0) / (1000 * (goal.answer_usd or 1)), 1.0)
        why = f"what {goal.budget_usd:g} USD buy for 1,000 prompts"
    at = float(np.quantile(pack.kept_scores, share))
    line = f"keep P(correct) >= {at:.3f}: about {share:.0%} go to the remote ({why})"
    return {"threshold": at, "line": f"{line}; no risk is certified"}


def _meta(backend: LocalBackend) -> dict[str, str]:
    from edgellm.routing.confidence.library import weights_sha256

    manifest = backend.bundle.manifest
    return {
        "model": manifest.name,
        "precision": str(manifest.recipe.get("name", "unknown")),
        "weights_sha256": weights_sha256(manifest),
    }


def _default_path(backend: LocalBackend) -> Path:
    from edgellm.routing.confidence.library import file_name, own_folder

    return own_folder(current().home_folder()) / file_name(backend.bundle.manifest)


def _bar(total: int) -> Any:
    """A bar on stderr where that is a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, unit="prompt", leave=False, disable=None)
