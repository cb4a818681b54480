"""Whether asking the remote pays: expected gain in quality against money and time. Pure arithmetic.

An item is one of four kinds (AutoMix, arXiv:2310.12963, and one more): NEEDY, only the remote gets
it right; GOOD, both do; HOPELESS, neither does; REGRET, only the local model does. With p the
probability that the local answer is right, w that the remote is right where the local one is wrong
and r where it is right, escalating gains (1 - p) w - p (1 - r) right answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Bar:
    """The answers that go to the remote: those with `low` <= P(correct) < `high`.

    Below `low` the remote is held not to know better either.
    """

    high: float
    low: float = 0.0

    def words(self, p_correct: float) -> str:
        """Why an answer is below the bar."""
        if self.high > 1:
            return f"p {p_correct:.2f}, and no threshold is certified"
        return f"p {p_correct:.2f} below {self.high:.2f}"

    def escalates(self, p_correct: float) -> bool:
        return self.low <= p_correct < self.high


@dataclass(frozen=True, slots=True)
class Worth:
    """What answers and seconds are worth to the user, and what the remote is held to know.

    `value_usd` is what a right answer is worth instead of a wrong one; the two chances are guesses
    until `route eval` has measured them for a remote.
    """

    value_usd: float = 0.01
    usd_per_second: float = 0.0001
    remote_right_if_local_wrong: float = 0.8
    remote_right_if_local_right: float = 0.97
    hopeless_below: float = 0.0

    def __post_init__(self) -> None:
        if not self.value_usd > 0:
            raise UsageError(f"value_usd must be above 0, got {self.value_usd}")
        if not self.usd_per_second >= 0:
            raise UsageError(f"usd_per_second must be 0 or more, got {self.usd_per_second}")
        for name in (
            "remote_right_if_local_wrong",
            "remote_right_if_local_right",
            "hopeless_below",
        ):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must be in [0, 1], got {value}")

    def gain(self, p_correct: float) -> float:
        """How many more right answers one escalation is expected to bring; may be negative."""
        if p_correct < self.hopeless_below:
            return 0.0
        regret = 1 - self.remote_right_if_local_right
        return (1 - p_correct) * self.remote_right_if_local_wrong - p_correct * regret

    def price_usd(self, cost_usd: float, seconds: float) -> float:
        return cost_usd + self.usd_per_second * seconds

    def bar(self, cost_usd: float, remote_s: float) -> Bar:
        """The answers for which gain x value exceeds the price; an empty bar when none does."""
        regret = 1 - self.remote_right_if_local_right
        spread = self.remote_right_if_local_wrong + regret
        if spread == 0:
            return Bar(0.0)
        share = self.price_usd(cost_usd, remote_s) / self.value_usd
        high = (self.remote_right_if_local_wrong - share) / spread
        return Bar(min(max(high, 0.0), 1.0), self.hopeless_below)

    def skips_local(
        self, p_before: float, cost_usd: float, local_s: float, remote_s: float
    ) -> bool:
        """Whether the remote should be asked at once.

        It should where escalating pays, and where trying here first costs more time than it saves:
        the try takes `local_s`, and with probability p it spares the remote's price and its errors.
        """
        remote_usd = self.price_usd(cost_usd, remote_s)
        if self.gain(p_before) * self.value_usd <= remote_usd:
            return False
        regret_usd = (1 - self.remote_right_if_local_right) * self.value_usd
        return self.usd_per_second * local_s > p_before * (remote_usd + regret_usd)
