"""The pack that comes along speaks for the weights that users get, and says what was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.bundle import manifest
from edgellm.routing.confidence import library
from edgellm.routing.confidence.calibrate import trust
from edgellm.routing.confidence.pack import Pack, load
from edgellm.routing.evaluation.metrics import auroc
from edgellm.routing.evaluation.records import Records, read

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def exact() -> Records:
    return read(DATA, "exact")


@pytest.fixture(scope="module")
def pack() -> Pack:
    (path,) = library.SHIPPED.glob("smollm2-135m-*.npz")
    return load(path)


def test_it_is_bound_to_the_weights_that_were_recorded(exact: Records, pack: Pack) -> None:
    pack.check(exact.meta["weights_sha256"])
    assert pack.about.graded == len(exact.split("calibration", "dev").graded)


def test_it_tells_right_answers_from_wrong_ones_on_templates_it_never_saw(
    exact: Records, pack: Pack
) -> None:
    test = exact.split("test")
    found = auroc(trust(pack, test.graded), test.correct)
    lowest = np.array([min((t.logprob for t in g.observed.tokens), default=0) for g in test.graded])
    assert found > 0.85
    assert found > auroc(lowest, test.correct) + 0.03


def test_its_certificate_holds_on_those_templates(exact: Records, pack: Pack) -> None:
    certificate = pack.certify(0.2)
    assert certificate.threshold is not None
    test = exact.split("test")
    kept = trust(pack, test.graded) >= certificate.threshold
    assert kept.mean() > 0.25
    assert (~test.correct[kept]).mean() <= 0.2


@pytest.mark.weights
def test_the_bundle_that_users_get_finds_it(smollm2_bundle: Path, tmp_path: Path) -> None:
    found = library.find(manifest.read(smollm2_bundle), tmp_path)
    assert found.about.precision == "exact"
