"""Rules that turn numbers into verdicts, the same for every claim and independent of the desired outcome.

A claim has items: numbers with two limits each, of one-sided confidence 1 − α. An item holds if both limits lie in the
range that the criterion allows, fails if both lie outside on one side, and is not resolved otherwise. If the limits
are right, a false number is accepted with a probability of at most α, and a true one rejected with at most α (2α
where it must lie between two bounds). A claim holds if
all its items do and fails if one does, so that with α = (rate of the claim)/(items) its verdict is wrong no more often
than that rate (Bonferroni); the rate of all claims together, `FAMILY_RATE`, is shared among them equally.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from scipy.stats import norm

__all__ = ["FAILS", "FAMILY_RATE", "HOLDS", "OPEN", "Estimate", "Item", "at_least", "at_most", "joined", "within"]

HOLDS: Final = "holds"
FAILS: Final = "fails"
OPEN: Final = "not resolved"
FAMILY_RATE: Final = 0.05
"""Upper bound of the probability that any verdict of all claims is wrong."""
_POWER: Final = 0.9
_HOPELESS: Final = 1e4


@dataclass(frozen=True)
class Estimate:
    """A number with its limits; if it is the largest of several numbers, `points` is how many, with joint limits."""

    value: float
    lower: float
    upper: float
    points: int = field(default=1, kw_only=True)

    def times(self, factor: float) -> "Estimate":
        """The number and its limits multiplied by a positive factor."""
        return Estimate(factor * self.value, factor * self.lower, factor * self.upper, points=self.points)


@dataclass(frozen=True)
class Item:
    """One number of a claim, its allowed range, and the resulting verdict.

    Attributes:
        label: name of the number.
        value: the number.
        lower: lower limit of the number.
        upper: upper limit of the number.
        low: smallest allowed value.
        high: largest allowed value.
        expected: value from theory or an earlier measurement, at which the power is computed.
        confidence: one-sided confidence of each limit.
        percent: whether it is a share, to be written in percent.
        points: how many numbers it is the largest of.
    """

    label: str
    value: float
    lower: float
    upper: float
    low: float
    high: float
    expected: float
    confidence: float
    percent: bool = False
    points: int = 1

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"`` or ``"not resolved"``."""
        if self.lower >= self.low and self.upper <= self.high:
            return HOLDS
        if self.lower > self.high or self.upper < self.low:
            return FAILS
        return OPEN

    @property
    def power(self) -> float:
        """Probability that limits as wide as these resolve a number whose true value is `expected`, by the normal law.

        For the largest of several numbers it is the smallest probability, the one if all of them are as expected.
        """
        z, up, down = self._errors()
        if not math.isfinite(up + down):
            return math.nan
        above, below = (
            1 - self.points * (1 - _beyond(margin, error, z))
            for margin, error in ((self.high - self.expected, up), (self.expected - self.low, down))
        )
        inside = above + below - 1
        outside = max(_beyond(self.expected - self.high, down, z), _beyond(self.low - self.expected, up, z))
        return max(inside, outside, 0.0)

    @property
    def effort(self) -> float:
        """Factor of the paths that would resolve the observed number with probability 90 %; infinite at a bound."""
        z, up, down = self._errors()
        wanted = z + float(norm.ppf(_POWER))
        shares = [
            _ratio(wanted * error, abs(self.value - edge))
            for edge, error in (
                (self.high, up if self.value <= self.high else down),
                (self.low, down if self.value >= self.low else up),
            )
            if math.isfinite(edge)
        ]
        inside = self.low <= self.value <= self.high
        needed = (max(shares) if inside else min(shares)) ** 2 if shares else math.nan
        return math.inf if needed > _HOPELESS else needed

    def _errors(self) -> tuple[float, float, float]:
        z = float(norm.isf((1 - self.confidence) / self.points))
        return z, (self.upper - self.value) / z, (self.value - self.lower) / z


def at_most(
    label: str, number: Estimate, bound: float, confidence: float, expected: float = 0.0, percent: bool = False
) -> Item:
    """The claim that a number is at most `bound`."""
    return _item(label, number, (-math.inf, bound), expected, confidence, percent)


def at_least(
    label: str, number: Estimate, bound: float, confidence: float, expected: float, percent: bool = False
) -> Item:
    """The claim that a number is at least `bound`."""
    return _item(label, number, (bound, math.inf), expected, confidence, percent)


def within(
    label: str,
    number: Estimate,
    bounds: tuple[float, float],
    confidence: float,
    expected: float | None = None,
    percent: bool = False,
) -> Item:
    """The claim that a number lies between two bounds; by default it is expected at their midpoint."""
    return _item(label, number, bounds, 0.5 * sum(bounds) if expected is None else expected, confidence, percent)


def _item(
    label: str, number: Estimate, bounds: tuple[float, float], expected: float, confidence: float, percent: bool
) -> Item:
    found = (number.value, number.lower, number.upper)
    return Item(label, *found, *bounds, expected, confidence, percent, number.points)


def joined(items: Iterable[Item]) -> str:
    """The joint verdict of all items: ``"fails"`` if one of them fails."""
    verdicts = {item.verdict for item in items}
    if FAILS in verdicts:
        return FAILS
    return OPEN if OPEN in verdicts or not verdicts else HOLDS


def _beyond(margin: float, error: float, z: float) -> float:
    """Probability that a limit z standard errors away stays within a margin."""
    if error <= 0 or math.isinf(margin):
        return float(margin >= 0)
    return float(norm.cdf(margin / error - z))


def _ratio(above: float, below: float) -> float:
    return math.inf if below == 0 or math.isnan(above) else above / below
