r"""Uncertainty of a gradient's square, of the trace of its noise and of their ratio, from scalars of one pass.

With rᵢ = √(wᵢWᵢ₋₁/Wᵢ) (gᵢ − ḡᵢ₋₁), Welford's recursive residuals, and W the weights summed: rᵢ has covariance Σ, is
uncorrelated with ḡᵢ, and

    E rᵢᵀrᵢ = tr Σ,   E (rᵢᵀḡᵢ)² = v₁ + v₂/Wᵢ,   v₁ = ∇fᵀΣ∇f,  v₂ = tr Σ².

The second is exact for normal noise. From the two sequences alone come the variances of the estimates,

    Var(‖ḡ‖² − tr Σ̂/W) = 4v₁/W + 2v₂/W²,   Var tr Σ̂ = Var(rᵀr)/K,

with all correlations between coordinates, and no gradient need be kept.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

__all__ = ["Pair", "limits", "pair"]

_ROUNDS = 12


class Pair(NamedTuple):
    """‖∇f‖² and tr Σ (or gᵀHg and tr HΣ) with their covariance.

    Attributes:
        square: unbiased estimate of ‖∇f‖².
        trace: unbiased estimate of tr Σ, of one sample.
        square_variance: of the first.
        trace_variance: of the second.
        covariance: of the two.
        gradients: how many.
    """

    square: float
    trace: float
    square_variance: float
    trace_variance: float
    covariance: float
    gradients: int


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
        trace: that of tr Σ.
        spread: rᵢᵀrᵢ, shape (K − 1,).
        cross: rᵢᵀḡᵢ, shape (K − 1,).
        at: Wᵢ, shape (K − 1,).
        inverse: 1/W and 1/W²; of a mean of such estimates, what stands for them.
        share: share of the population that was not drawn: 1 of an infinite one, 0 if all of it was.
    """
    count = len(spread) + 1
    if share == 0:
        return Pair(square, trace, 0.0, 0.0, 0.0, count)
    if count < 3:
        return Pair(square, trace, math.inf, math.inf, 0.0, count)
    first, second = _components(cross**2, 1 / at)
    square_variance = 4 * first * inverse[0] + 2 * second * inverse[1]
    trace_variance = float(spread.var(ddof=1)) / len(spread)
    covariance = 2 * inverse[0] * float(np.cov(spread, cross)[0, 1])
    return Pair(square, trace, share * square_variance, share * trace_variance, share * covariance, count)


def _components(square: np.ndarray, inverse: np.ndarray) -> tuple[float, float]:
    """v₁, v₂ ≥ 0 of squares with mean v₁ + v₂/W, each weighted by its own variance, which is as its squared mean."""
    size = float(square.mean())
    if size == 0:
        return 0.0, 0.0
    unit = float(inverse.mean())
    design = np.stack([np.ones_like(inverse), inverse / unit], axis=1)
    mean = np.ones_like(inverse)
    fitted = np.zeros(2)
    for _ in range(_ROUNDS):
        fitted = optimize.nnls(design / mean[:, None], square / size / mean)[0]
        mean = np.maximum(design @ fitted, 1e-6)
    return float(fitted[0]) * size, float(fitted[1]) * size / unit


def limits(of: Pair, confidence: float) -> tuple[float, float]:
    r"""Limits of ‖∇f‖²/tr Σ by Fieller's method, never below 0; the upper is infinite where tr Σ is not told from 0.

    They are the ρ with (S − ρT)² ≤ t² Var(S − ρT), by Student's t with K − 1 degrees of freedom. An S below 0 is taken
    as 0 for the upper limit, which cannot then exclude every ratio.
    """
    if of.trace <= 0:
        return (0.0, math.inf)
    if not (math.isfinite(of.square_variance) and math.isfinite(of.trace_variance)):
        return (0.0, math.inf)
    t2 = float(stats.t.ppf(0.5 + confidence / 2, of.gradients - 1)) ** 2
    lower, _ = _fieller(of.square, of, t2)
    _, upper = _fieller(max(of.square, 0.0), of, t2)
    return (max(lower, 0.0), upper)


def _fieller(square: float, of: Pair, t2: float) -> tuple[float, float]:
    a = of.trace**2 - t2 * of.trace_variance
    if a <= 0:
        return (0.0, math.inf)
    b = square * of.trace - t2 * of.covariance
    c = square**2 - t2 * of.square_variance
    root = math.sqrt(max(b * b - a * c, 0.0))
    return ((b - root) / a, (b + root) / a)
