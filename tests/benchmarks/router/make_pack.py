"""The confidence pack that ships with edgellm, from recorded answers.

    python tests/benchmarks/router/make_pack.py tests/routing/data --precision exact

Fitted on the calibration templates, certified on the dev templates; the test templates stay sealed.
The pack lands in edgellm/routing/packs under the name that the router looks for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout  # noqa: F401  (the packages of this checkout come before installed ones)

from edgellm.routing.confidence.calibrate import make_pack
from edgellm.routing.confidence.library import SHIPPED
from edgellm.routing.confidence.pack import save
from edgellm.routing.evaluation.records import read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="exact")
    parser.add_argument("--name", default="smollm2-135m")
    args = parser.parse_args()
    records = read(args.folder, args.precision)
    pack = make_pack(records)
    SHIPPED.mkdir(exist_ok=True)
    path = SHIPPED / f"{args.name}-{pack.about.weights_sha256[:12]}.npz"
    save(pack, path)
    print(f"{path.name}: {path.stat().st_size} bytes, {pack.about.graded} graded answers")
    for risk in (0.05, 0.1, 0.2, 0.3, 0.4):
        print(pack.certify(risk).line())


if __name__ == "__main__":
    main()
