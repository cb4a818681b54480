"""A risk becomes a threshold by the pack's certificate, or nothing stays here."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from router_fakes import FakeGuard, FakePack, FakeRemote, local, read, remote

from edgellm.errors import UsageError
from edgellm.routing.confidence.pack import Pack
from edgellm.routing.options import RouterOptions
from edgellm.routing.risk import Certifying
from edgellm.routing.router import Router


@dataclass(frozen=True)
class Certificate:
    threshold: float | None

    def line(self) -> str:
        return f"keep {self.threshold}"


class Certified(FakePack):
    def __init__(self, threshold: float | None, p: float) -> None:
        super().__init__(p)
        self.asked: list[tuple[float, float]] = []
        self._threshold = threshold

    def certify(self, risk: float, confidence: float) -> Certificate:
        self.asked.append((risk, confidence))
        return Certificate(self._threshold)


def router(pack: FakePack | None) -> Router:
    options = RouterOptions("cascade", risk=0.1, certainty=0.9)
    return Router(local(), [FakeRemote(remote())], options, pack, FakeGuard())


@pytest.mark.parametrize(("p", "source"), [(0.84, "remote"), (0.86, "local")])
def test_the_certified_threshold_decides(p: float, source: str) -> None:
    pack = Certified(0.85, p)
    routed = router(pack)
    assert pack.asked == [(0.1, 0.9)]
    assert routed.certificate == "keep 0.85"
    assert read(routed).route.source == source
    # Another policy keeps the certificate.
    assert routed.with_policy("ask").certificate == "keep 0.85"


def test_nothing_stays_where_nothing_is_certified() -> None:
    shown = read(router(Certified(None, 1.0)))
    assert shown.route.source == "remote"
    assert "no threshold is certified" in shown.route.reason


@pytest.mark.parametrize("pack", [None, FakePack(0.9)])
def test_a_risk_without_graded_answers_is_refused(pack: FakePack | None) -> None:
    with pytest.raises(UsageError, match="route calibrate"):
        router(pack)


def test_a_real_pack_can_certify() -> None:
    assert issubclass(Pack, Certifying)


@pytest.mark.parametrize("wrong", [{"risk": 0.0}, {"risk": 1.0}, {"certainty": float("nan")}])
def test_a_wrong_risk_is_refused_where_it_is_born(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RouterOptions(**wrong)  # type: ignore[arg-type]
