"""How heavy the tails of gradients are, whether they are normal, and the efficiency of a gradient's sign."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import stats

from sdelens.diagnosis import _student

__all__ = ["HEAVY", "Tail", "no_tail", "tail"]

LEAST: Final = 20
"""Least number of gradients for a fit; with fewer, the coverage of the intervals is not verified."""
HEAVY: Final = 1 / 3
"""κ above which few values decide a mean of squares: with ν < 3 its error falls slower than K^(−1/3)."""
_TIES: Final = 0.1
_BLOCKS: Final = 20


@dataclass(frozen=True)
class Tail:
    r"""Tails of one group's gradients.

    The law of every coordinate is Student's t continued through the normal, p(u) ∝ (1 + κu²)^{−(1/κ+1)/2}, κ = 1/ν,
    with a location and a scale per coordinate and one κ per group: κ = 0 is normal, κ < 0 has a bounded support, κ ≥ ½
    no variance, κ ≥ 1 no mean. If coordinates differ in κ, the fitted κ is a compromise.

    Attributes:
        kappa: κ = 1/ν; NaN if there is no fit.
        lower, upper: limits of κ at `confidence`; infinite on the side where the fit is at a bound.
        sem: standard error of κ, which is also valid for dependent coordinates.
        kurtosis, kurtosis_sem: mean excess kurtosis over the coordinates, by a jackknife over 20 blocks of gradients.
            They are not meaningful for κ near ¼ and above, where there is no fourth moment.
        skewness, skewness_sem: mean *squared* skewness, likewise.
        asymmetry, asymmetry_sem: mean over the coordinates of the squared quartile skewness (Q₃ + Q₁ − 2Q₂)/(Q₃ − Q₁),
            which exists for every law, from products of two halves of the gradients; the standard error takes
            coordinates as independent.
        sign_descent, sign_descent_sem: mean over the coordinates of E g E sign(g)/σ, the rate at which steps of
            −sign(g) reduce the loss, with a standard error by the same jackknife (too large if E g = 0). It is positive
            for symmetric noise; for skewed noise it may be negative, and such steps then increase the loss.
        coordinates, gradients: numbers of both in the fit.
        zeros: share of the values of these coordinates that are exactly 0. The fit (κ, its limits and the efficiency)
            is that of the other values; everything else is computed from all values.
        left_out: number of sampled coordinates left out because fewer than 20 of their values differ from 0, or over a
            tenth of those are equal.
        confidence: confidence of the limits.
        reason: why there is no fit, or None.
    """

    kappa: float
    lower: float
    upper: float
    sem: float
    kurtosis: float
    kurtosis_sem: float
    skewness: float
    skewness_sem: float
    asymmetry: float
    asymmetry_sem: float
    sign_descent: float
    sign_descent_sem: float
    coordinates: int
    gradients: int
    left_out: int
    confidence: float
    reason: str | None = None
    zeros: float = 0.0

    @property
    def df(self) -> float:
        """ν = 1/κ, infinite for κ ≤ 0."""
        return 1 / self.kappa if self.kappa > 0 else (math.nan if math.isnan(self.kappa) else math.inf)

    @property
    def normal_z(self) -> float:
        """κ divided by its standard error; Student's t with K − 1 degrees of freedom if the law is normal."""
        return self.kappa / self.sem

    @property
    def normal_p(self) -> float:
        """Two-sided p-value of `normal_z` under normality."""
        return float(2 * stats.t.sf(abs(self.normal_z), self.gradients - 1)) if math.isfinite(self.sem) else math.nan

    @property
    def efficiency(self) -> float:
        r"""(2p(0)σ)²: the number of samples of g that are worth one sample of sign(g), at small signal.

        sign(g) has signal 2p(0)∂f and noise 1, g has signal ∂f and noise σ, so the quotient of their signal-to-noise
        ratios is 2p(0)σ. The efficiency is 2/π for normal noise, 0.96 for ν = 5, 1.62 for ν = 3, and infinite without a
        variance. Zeros that occur independently of the other values reduce the squared signals and the variances by
        the same factor, and leave it unchanged.
        """
        return math.nan if math.isnan(self.kappa) else _student.efficiency(self.kappa)

    @property
    def efficiency_limits(self) -> tuple[float, float]:
        """Limits of `efficiency`, which is an increasing function of κ."""
        if math.isnan(self.lower):
            return (math.nan, math.nan)
        low, high = _student.BOUNDS
        return _student.efficiency(max(self.lower, low)), _student.efficiency(min(self.upper, high))

    def to_dict(self) -> dict[str, Any]:
        """Numbers as JSON types; NaN and infinite numbers become None."""
        limits = {"df": self.df, "efficiency": self.efficiency}
        limits |= dict(zip(("efficiency_lower", "efficiency_upper"), self.efficiency_limits, strict=True))
        found = self.__dict__ | limits | {"normal_p": self.normal_p}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def tail(values: np.ndarray, confidence: float) -> Tail:
    """Tails of the columns of `values`: a row is a gradient, a column a coordinate."""
    count = len(values)
    moving = np.ptp(values, axis=0) > 0
    values = values[:, moving]
    if count < LEAST:
        return no_tail(count, confidence, f"there are {count} gradients, and {LEAST} or more are needed")
    other = (values != 0).sum(axis=0)
    kept = (other >= LEAST) & (_longest_run(np.sort(values, axis=0)) <= np.maximum(2, _TIES * other))
    left_out = int((~kept).sum())
    values = values[:, kept]
    if not values.shape[1]:
        why = (
            f"in every coordinate, fewer than {LEAST} values differ from 0 or more than a tenth of them are equal; "
            "give more gradients, or gradients of larger batches"
        )
        why = why if left_out else "no coordinate varies"
        return no_tail(count, confidence, why, left_out)
    found = _student.fit(values, confidence)
    moments = _shape_moments(values)
    fitted = (found.kappa, found.lower, found.upper, found.sem)
    shapes = (*moments, *_asymmetry(values), *_sign_descent(values))
    zeros = float((values == 0).mean())
    return Tail(*fitted, *shapes, values.shape[1], count, left_out, confidence, zeros=zeros)


def no_tail(gradients: int, confidence: float, reason: str, left_out: int = 0) -> Tail:
    """A `Tail` without a fit, and the reason."""
    nan = math.nan
    return Tail(nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, 0, gradients, left_out, confidence, reason)


def _longest_run(ordered: np.ndarray) -> np.ndarray:
    """Largest number of equal values other than 0 in every sorted column."""
    same = (np.diff(ordered, axis=0) == 0) & (ordered[1:] != 0)
    longest, run = (np.zeros(ordered.shape[1], int) for _ in range(2))
    for row in same:
        run = (run + 1) * row
        np.maximum(longest, run, out=longest)
    return longest + 1


def _shape_moments(x: np.ndarray) -> tuple[float, float, float, float]:
    """Mean excess kurtosis and mean squared skewness with standard errors, by leaving out blocks of gradients.

    The jackknife removes the bias of order 1/K; for squared skewness of a symmetric law this is the whole bias.
    """
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    blocks = np.arange(len(x)) % min(_BLOCKS, len(x))
    number = int(blocks.max()) + 1
    sums = np.stack([np.stack([(x[blocks == b] ** p).sum(axis=0) for p in range(5)]) for b in range(number)])
    total = sums.sum(axis=0)
    whole = _averages(total)
    without = np.stack([_averages(total - s) for s in sums])
    value = number * whole - (number - 1) * without.mean(axis=0)
    sem = np.sqrt((number - 1) * without.var(axis=0))
    return float(value[0]), float(sem[0]), float(value[1]), float(sem[1])


def _asymmetry(x: np.ndarray) -> tuple[float, float]:
    """Mean squared quartile skewness with its standard error, from the products of two halves of the gradients."""
    halves = []
    for half in (x[::2], x[1::2]):
        first, second, third = np.quantile(half, [0.25, 0.5, 0.75], axis=0)
        width = third - first
        halves.append(np.where(width > 0, (third + first - 2 * second) / np.where(width > 0, width, 1), 0))
    product = halves[0] * halves[1]
    sem = product.std(ddof=1) / math.sqrt(product.size) if product.size > 1 else math.inf
    return float(product.mean()), float(sem)


def _sign_descent(x: np.ndarray) -> tuple[float, float]:
    """Mean over coordinates of E g E sign(g)/σ with its standard error, from products of different gradients."""
    x = x / x.std(axis=0)
    sign = np.sign(x)
    blocks = np.arange(len(x)) % min(_BLOCKS, len(x))
    number = int(blocks.max()) + 1
    parts = [np.stack([a[blocks == b].sum(axis=0) for b in range(number)]) for a in (x, sign, x * sign)]
    sizes = np.bincount(blocks)

    def estimate(sums: list[np.ndarray], count: Any) -> np.ndarray:
        return np.asarray((sums[0] * sums[1] - sums[2]).mean(axis=-1) / (count * (count - 1)))

    totals = [a.sum(axis=0) for a in parts]
    without = estimate([total - a for total, a in zip(totals, parts, strict=True)], len(x) - sizes)
    return float(estimate(totals, len(x))), math.sqrt((number - 1) * float(without.var()))


def _averages(sums: np.ndarray) -> np.ndarray:
    """Mean excess kurtosis and mean squared skewness from power sums of order 0 to 4, shape (5, J)."""
    m1, m2, m3, m4 = sums[1:] / sums[0]
    variance = m2 - m1**2
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return np.array([np.mean(fourth / variance**2) - 3, np.mean(third**2 / variance**3)])
