"""Does a pack hold on prompts and weights that it was not made for? From recorded answers.

    python tests/benchmarks/router/shift.py tests/routing/data

The pack is fitted on the calibration templates of the exact weights and certified on the dev
templates. It then judges other templates, paraphrases, typing errors, added distractors, and the
answers of int4 weights, which the router itself would refuse to judge with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout  # noqa: F401  (the packages of this checkout come before installed ones)
import numpy as np

from edgellm.routing.confidence.calibrate import make_pack, trust
from edgellm.routing.confidence.pack import Pack
from edgellm.routing.evaluation import metrics
from edgellm.routing.evaluation.baselines import Answers
from edgellm.routing.evaluation.compare import admitted
from edgellm.routing.evaluation.records import read

RISKS = (0.1, 0.2, 0.3)


def row(name: str, pack: Pack, answers: Answers) -> str:
    p = trust(pack, answers)
    correct = np.array([g.lenient for g in answers])
    families = np.array([g.family for g in answers])
    cells = [
        name, str(len(answers)), f"{correct.mean():.1%}", f"{metrics.auroc(p, correct):.3f}",
        f"{metrics.within(p, correct, families):.3f}", f"{metrics.ece(p, correct):.3f}",
        *(certified(pack, p, correct, risk) for risk in RISKS),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def certified(pack: Pack, p: metrics.Float64, correct: metrics.Bools, risk: float) -> str:
    """How many answers the certified threshold keeps, and how many of those are wrong."""
    threshold = pack.certify(risk).threshold
    kept = p >= (2.0 if threshold is None else threshold)
    if not kept.any():
        return "nothing kept"
    return f"{(~correct[kept]).mean():.1%} of {kept.mean():.1%}"


def lines(folder: Path) -> Iterator[str]:
    exact, int4 = read(folder, "exact"), read(folder / "int4", "int4")
    families = admitted(exact.split("calibration").graded)
    pack = make_pack(exact.where(lambda g: g.family in families))
    yield f"| answers | n | right | AUROC | within | ECE | {' | '.join(map(head, RISKS))} |"
    yield "|---" * (6 + len(RISKS)) + "|"
    sets = {name: exact.split(name) for name in ("test", "paraphrase", "typos", "distractors")}
    sets["test, int4 weights"] = int4.split("test")
    for name, records in sets.items():
        yield row(name, pack, records.where(lambda g: g.family in families).graded)


def head(risk: float) -> str:
    return f"wrong of kept, certified {risk:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    for line in lines(parser.parse_args().folder):
        print(line)


if __name__ == "__main__":
    main()
