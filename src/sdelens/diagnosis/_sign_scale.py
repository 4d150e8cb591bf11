r"""The noise scale of methods that follow the sign of the gradient, (Σ σⱼ/‖∇f‖₁)², from moments per coordinate.

‖ḡ‖₁ estimates ‖∇f‖₁ with a bias that is large where noise dominates, and no estimate without bias exists. There are
bounds, however, which hold for every law of the gradients:

    gᵢᵀ sign(ḡᵢ₋₁) has a mean of ‖∇f‖₁ or less for given gradients before i, and ‖ḡ‖₁ has one of ‖∇f‖₁ or more,

and ‖∇f‖₁ ≤ √d ‖∇f‖₂ in a group of d coordinates. Between them an estimate follows from the distribution of the
noncentralities |∂f|√W/σ under which the observed |ḡ|√W/σ̂ are most likely.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from scipy import special, stats

from sdelens.diagnosis._shares import mixture

__all__ = ["LEAST", "SignMoments", "SignScale", "sign_scale", "unknown"]

LEAST: Final = 8
"""Least number of gradients at one point for limits: those of the second half are used for the lower bound."""
_GROWTH: Final = 0.1
"""Growth of Σ σ̂ with the later gradients from which no upper limit is given."""
_LACKING: Final = 0.03
"""Share of Σ σ lacking in Σ σ̂ from which none is given; its estimate is above 0.036 where one value decides each σ̂."""


class SignScale(NamedTuple):
    """A noise scale in samples with its limits; the upper is infinite if ‖∇f‖₁ may be 0, NaN where `reason` says why.

    Attributes:
        estimate: the noise scale, NaN if it is not resolved.
        lower, upper: limits.
        reason: why something is NaN, or None.
    """

    estimate: float
    lower: float
    upper: float
    reason: str | None = None


class SignMoments(NamedTuple):
    """What the estimate needs of the coordinates of one group.

    Attributes:
        mean, variance: ḡ and σ̂² per sample.
        weight: W.
        df: degrees of freedom of σ̂².
        products: gᵢᵀ sign(ḡᵢ₋₁).
        sizes: ‖gᵢ − ḡᵢ₋₁‖₁.
        at: wᵢ, Wᵢ₋₁ and i − 1 of these.
        earlier: K′ and Σ √M₂ of the first K′ gradients, or None.
        trace_error: relative standard error of tr Σ̂.
        most: upper limit of ‖∇f‖₁ from that of ‖∇f‖₂; infinite if there is none.
        share: share of the population that was not drawn.
        heavy: whether fitted tails are so heavy that few values decide σ̂.
    """

    mean: np.ndarray
    variance: np.ndarray
    weight: float
    df: int
    products: np.ndarray
    sizes: np.ndarray
    at: np.ndarray
    earlier: tuple[int, float] | None
    trace_error: float
    most: float
    share: float
    heavy: bool


def unknown(reason: str) -> SignScale:
    """Nothing is known, and why."""
    return SignScale(math.nan, math.nan, math.nan, reason)


def sign_scale(of: SignMoments, confidence: float) -> SignScale:
    r"""The estimate and its limits.

    With N the mean of gᵢᵀ sign(ḡᵢ₋₁) over the second half of the gradients and V the variance of √wᵢ times these
    products, which bounds that of √W ‖ḡ‖₁ for normal noise (Poincaré's inequality),

        N − t s(N) ≤ ‖∇f‖₁ ≤ ‖ḡ‖₁ + t √(V/W),

    and the upper limit is replaced by `most` if that is smaller. The relative error of Σ σ̂ is at most half of that of
    tr Σ̂ if all coordinates have the same relative error.

    For sparse or heavy-tailed gradients σ̂ is too small on average. With R the ratio of Σ σ̂ to its value √(π/2) E‖δ‖₁
    for normal noise δ, 3(R² − 1)/(8K) of it is lacking if δ is 0 or normal at random; and Σ σ̂ grows with the number of
    gradients. The upper limit is increased by twice this share and twice the growth since `earlier`, and it is not
    given if either is large, or the fitted tails are so heavy that few values decide σ̂.

    Sources: the noise scale, arXiv 2602.03001; its limits are derived here.
    """
    deviation = np.sqrt(of.variance)
    gradient = np.abs(of.mean)
    if of.share == 0:
        exact = (float(deviation.sum()) / float(gradient.sum())) ** 2 if gradient.any() else math.inf
        return SignScale(exact, exact, exact)
    if of.df < LEAST - 1:
        return unknown(f"there are {of.df + 1} gradients, and {LEAST} or more are needed; give more gradients")
    noise, norm = float(deviation.sum()) / _shrinkage(of.df), float(gradient.sum())
    if noise == 0:
        return SignScale(0.0, 0.0, 0.0) if norm else unknown("there is neither gradient nor noise")
    own, before = of.at[:, 0], of.at[:, 2]
    late = before >= before.max() / 2
    weights = own[late] / own[late].sum()
    least = float(weights @ of.products[late])
    count = int(late.sum())
    spread = float((own[late] * (of.products[late] - least) ** 2).sum()) / (count - 1)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, count - 1))
    error = quantile * of.trace_error / 2
    low = least - math.hypot(quantile * math.sqrt(of.share * spread / own[late].sum()), error * max(least, 0.0))
    high = norm + math.hypot(quantile * math.sqrt(of.share * spread / of.weight), error * norm)
    high = min(high, of.most * (1 + error))
    growth, lacking = _growth(of, noise), _lacking(of, noise)
    lower = (noise / high) ** 2
    upper = math.inf if low <= 0 else (noise * (1 + 2 * growth + 2 * lacking) / low) ** 2
    if (growth > _GROWTH or lacking > _LACKING or of.heavy) and low > 0:
        reason = (
            "the gradients are so sparse or heavy-tailed that few values decide the standard deviations of many "
            "coordinates; give more gradients, or gradients of larger batches"
        )
        return SignScale(math.nan, lower, math.nan, reason)
    if low <= 0:
        return SignScale(math.nan, lower, upper, "the gradient is not resolved; give more gradients")
    estimate = (noise / _norm(of, deviation, noise)) ** 2
    return SignScale(min(max(estimate, lower), upper), lower, upper)


def _shrinkage(df: int) -> float:
    """E σ̂/σ of normal noise."""
    return math.sqrt(2 / df) * math.exp(float(special.gammaln((df + 1) / 2) - special.gammaln(df / 2)))


def _growth(of: SignMoments, noise: float) -> float:
    if of.earlier is None:
        return 0.0
    count, roots = of.earlier
    before = roots / math.sqrt(count - 1) / _shrinkage(count - 1)
    return max(noise / before - 1, 0.0) if before else math.inf


def _lacking(of: SignMoments, noise: float) -> float:
    own, before = of.at[:, 0], of.at[:, 1]
    normal = math.sqrt(math.pi / 2) * float((of.sizes / np.sqrt(1 / own + 1 / before)).mean())
    return max(3 * ((noise / normal) ** 2 - 1) / (8 * (of.df + 1)), 0.0)


def _norm(of: SignMoments, deviation: np.ndarray, noise: float) -> float:
    """‖∇f‖₁ under the most likely distribution of noncentralities, to which a coordinate contributes with weight σ̂."""
    still = deviation == 0
    size = np.sqrt(of.weight / of.share) / np.where(still, 1, deviation)
    grid, shares = mixture((np.abs(of.mean) * size)[~still], deviation[~still], of.df, np.zeros(0), 0.0)
    return noise * math.sqrt(of.share / of.weight) * float(grid @ shares) + float(np.abs(of.mean[still]).sum())
