r"""Uncertainty of a gradient's square, of the trace of its noise and of their ratio, from scalars of one pass.

Let rᵢ = √(wᵢWᵢ₋₁/Wᵢ) (gᵢ − ḡᵢ₋₁) be Welford's recursive residuals and Wᵢ the sums of weights. Then rᵢ has covariance
Σ, is uncorrelated with ḡᵢ, and

    E rᵢᵀrᵢ = tr Σ,   E (rᵢᵀḡᵢ)² = v₁ + v₂/Wᵢ,   v₁ = ∇fᵀΣ∇f,  v₂ = tr Σ².

The second is exact for normal noise. These two sequences suffice for the variances of the estimates,

    Var(‖ḡ‖² − tr Σ̂/W) = 4v₁/W + 2v₂/W²,   Var tr Σ̂ = Var(rᵀr)/K,

which include all correlations between coordinates, and no gradient needs to be kept.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

__all__ = ["Pair", "limits", "pair"]

_ROUNDS = 12
_MANY = 1e6


class Pair(NamedTuple):
    """‖∇f‖² and tr Σ (or gᵀHg and tr HΣ) with their covariance.

    Attributes:
        square: unbiased estimate of ‖∇f‖².
        trace: unbiased estimate of tr Σ, of one sample.
        floor, slope: the variance of `square` is floor + slope ‖∇f‖².
        trace_variance: variance of `trace`.
        covariance: covariance of `square` and `trace`.
        freedom: (tr Σ)²/tr Σ², the effective number of coordinates of the noise.
        gradients: number of gradients.
    """

    square: float
    trace: float
    floor: float
    slope: float
    trace_variance: float
    covariance: float
    freedom: float
    gradients: int

    @property
    def square_variance(self) -> float:
        """Variance of `square`, evaluated at its estimate."""
        return self.floor + self.slope * max(self.square, 0.0)


def pair(
    square: float,
    trace: float,
    spread: np.ndarray,
    cross: np.ndarray,
    at: np.ndarray,
    inverse: tuple[float, float],
    share: float = 1,
) -> Pair:
    """The estimates with their covariance.

    Args:
        square: unbiased estimate of ‖∇f‖².
        trace: unbiased estimate of tr Σ.
        spread: rᵢᵀrᵢ, shape (K − 1,).
        cross: rᵢᵀḡᵢ, shape (K − 1,).
        at: Wᵢ, shape (K − 1,).
        inverse: 1/W and 1/W²; for a mean of several such estimates, the values that replace them.
        share: share of the population that was not drawn: 1 for an infinite one, 0 if all of it was drawn.
    """
    count = len(spread) + 1
    if share == 0:
        return Pair(square, trace, 0.0, 0.0, 0.0, 0.0, 1.0, count)
    if count < 3:
        return Pair(square, trace, math.inf, 0.0, math.inf, 0.0, 1.0, count)
    along, second = _components(cross**2, 1 / at, square, trace, inverse)
    trace_variance = float(spread.var(ddof=1)) / len(spread)
    covariance = 2 * inverse[0] * float(np.cov(spread, cross)[0, 1])
    floor, slope = 2 * second * inverse[1], 4 * along * inverse[0]
    # A mean over n windows has n times the degrees of freedom.
    freedom = max(trace**2 / second, 1.0) * inverse[1] / inverse[0] ** 2 if second > 0 else math.inf
    variances = (share * floor, share * slope, share * trace_variance, share * covariance)
    return Pair(square, trace, *variances, freedom, count)


def _components(
    products: np.ndarray, inverse: np.ndarray, square: float, trace: float, of_all: tuple[float, float]
) -> tuple[float, float]:
    """The noise along the gradient, v₁/‖∇f‖², and v₂, from squares with mean v₁ + v₂/W.

    Each square is weighted by its inverse variance, which is proportional to its squared mean. Near ∇f = 0 the two
    cannot be separated. Then v₂ is shrunk towards its value without a gradient, and the noise along the gradient
    towards tr Σ²/tr Σ, its value for a gradient distributed like the noise; the weight is the error of ‖∇f‖².
    """
    size = float(products.mean())
    if size == 0 or trace == 0:
        return 0.0, 0.0
    unit = float(inverse.mean())
    design = np.stack([np.ones_like(inverse), inverse / unit], axis=1)
    mean = np.ones_like(inverse)
    fitted = np.zeros(2)
    for _ in range(_ROUNDS):
        fitted = optimize.nnls(design / mean[:, None], products / size / mean)[0]
        mean = np.maximum(design @ fitted, 1e-6)
    first, second = float(fitted[0]) * size, float(fitted[1]) * size / unit
    alone = float((products / inverse).mean())
    known, doubt = max(square, 0.0), math.sqrt(2 * alone * of_all[1])
    drawn = doubt / (known + doubt)
    second = drawn * alone + (1 - drawn) * second
    return (first + doubt * second / abs(trace)) / (known + doubt), second


def limits(of: Pair, confidence: float) -> tuple[float, float]:
    r"""Limits of ‖∇f‖²/tr Σ by Fieller's method, 0 or more; the upper is infinite if tr Σ may be 0.

    They bound the ρ with (S − ρT)² ≤ t² Var(S − ρT), where the variance of S is taken at ‖∇f‖² = ρT and t is the
    quantile of Student's law with K − 1 degrees of freedom. Without a gradient S is skewed like χ² with `freedom`
    degrees of freedom; for the lower limit, its error is widened there by the ratio of the quantile of that law to
    the normal one. For the upper limit a negative S is replaced by 0, so that not every ratio is excluded.
    """
    if of.trace == 0 and of.square > 0:  # no noise at all
        return (math.inf, math.inf)
    if of.trace <= 0:
        return (0.0, math.inf)
    if not (math.isfinite(of.floor) and math.isfinite(of.trace_variance)):
        return (0.0, math.inf)
    t2 = float(stats.t.ppf(0.5 + confidence / 2, of.gradients - 1)) ** 2
    level, wider = 0.5 + confidence / 2, 1.0
    if of.freedom < _MANY:
        quantile = float(stats.chi2.ppf(level, of.freedom)) / of.freedom - 1
        wider = max(quantile / math.sqrt(2 / of.freedom) / float(stats.norm.ppf(level)), 1.0)
    lower, _ = _fieller(of.square, of._replace(floor=of.floor * wider**2), t2)
    _, upper = _fieller(max(of.square, 0.0), of, t2)
    return (max(lower, 0.0), upper)


def _fieller(square: float, of: Pair, t2: float) -> tuple[float, float]:
    a = of.trace**2 - t2 * of.trace_variance
    if a <= 0:
        return (0.0, math.inf)
    b = square * of.trace + t2 * (of.slope * of.trace / 2 - of.covariance)
    c = square**2 - t2 * of.floor
    root = math.sqrt(max(b * b - a * c, 0.0))
    return ((b - root) / a, (b + root) / a)
