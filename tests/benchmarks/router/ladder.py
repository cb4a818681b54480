"""Accuracy by family and level, as a table: where the local model is right.

    python tests/benchmarks/router/ladder.py FOLDER PRECISION [--split SPLIT]

Real: the answers of the recorded bundle and their grades. A star: outside 15 to 85 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import items
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("precision")
    parser.add_argument("--split", action="append", help="only these splits; else the first three")
    args = parser.parse_args()
    splits = args.split or ["calibration", "dev", "test"]
    known = items.read(args.folder / "items.jsonl")
    with np.load(args.folder / f"{args.precision}.npz") as file:
        strict, lenient, cut = (file[name] for name in ("strict", "lenient", "finish"))
    keep = np.array([item.split in splits for item in known])
    family = np.array([item.family for item in known])
    level = np.array([item.level for item in known])
    print("| family | n | strict % | lenient % | 1 | 2 | 3 | 4 | 5 | cut % |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    inside = cells = 0
    for name in [*dict.fromkeys(family), "all"]:
        mine = keep & ((family == name) | (name == "all"))
        shares = [lenient[mine & (level == i)].mean() for i in range(1, 6)]
        if name != "all":
            inside += sum(0.15 <= share <= 0.85 for share in shares)
            cells += 5
        row = " | ".join(f"{100 * s:.0f}{'' if 0.15 <= s <= 0.85 else '*'}" for s in shares)
        right = " | ".join(f"{100 * verdict[mine].mean():.0f}" for verdict in (strict, lenient))
        print(f"| {name} | {mine.sum()} | {right} | {row} | {100 * cut[mine].mean():.0f} |")
    print(f"\n{inside} of {cells} cells lie between 15 and 85 %")


if __name__ == "__main__":
    main()
