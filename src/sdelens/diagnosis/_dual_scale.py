r"""Noise scales in the dual norm of an optimizer's steps, (ς/‖∇f‖)², with limits from bounds of ‖∇f‖.

ς is the size of the noise of one sample in that norm. Of the mean ḡ of gradients, ‖ḡ‖ estimates ‖∇f‖ with a bias that
is large where noise dominates, and no estimate without bias exists. There are bounds, however, which hold for every law
of the gradients: with s(ḡ) the step of length 1 for which ⟨ḡ, s(ḡ)⟩ = ‖ḡ‖,

    ⟨gᵢ, s(ḡᵢ₋₁)⟩ has a mean of ‖∇f‖ or less for given gradients before i, and ‖ḡ‖ has one of ‖∇f‖ or more,

and ‖∇f‖ ≤ √r ‖∇f‖₂ with r the largest of (‖u‖/‖u‖₂)². The ℓ1 norm with s = sign is that of `_sign_scale`, the nuclear
norm with s the orthogonal factor that of `_nuclear_scale`.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

__all__ = ["LEAST", "Bounds", "DualMoments", "DualScale", "Excess", "dual_scale", "growth_of", "unknown"]

LEAST: Final = 8
"""Least number of gradients at one point for limits: those of the second half are used for the lower bound."""
_GROWTH: Final = 0.1
"""Growth of ς with the later gradients from which no upper limit is given."""
_LACKING: Final = 0.03
"""Share of ς that is lacking in its estimate from which none is given."""


class DualScale(NamedTuple):
    """A noise scale in samples with its limits; the upper is infinite if ‖∇f‖ may be 0, NaN where `reason` says why.

    Attributes:
        estimate: the noise scale, NaN if it is not resolved.
        lower, upper: limits.
        reason: why something is NaN, or None.
    """

    estimate: float
    lower: float
    upper: float
    reason: str | None = None


class Bounds(NamedTuple):
    """What the limits need of a group besides its dual norm.

    Attributes:
        trace_error: relative standard error of tr Σ̂.
        most: upper limit of ‖∇f‖ from that of ‖∇f‖₂; infinite if there is none.
        share: share of the population that was not drawn.
        heavy: whether fitted tails are so heavy that few values decide Σ̂.
    """

    trace_error: float
    most: float
    share: float
    heavy: bool


class DualMoments(NamedTuple):
    """What the limits need in the dual norm.

    Attributes:
        noise: ς of one sample.
        norm: ‖ḡ‖.
        weight: W.
        gradients: K.
        products: ⟨gᵢ, s(ḡᵢ₋₁)⟩, shape (K − 1,).
        at: wᵢ, Wᵢ₋₁ and i − 1 of these, shape (K − 1, 3).
        bounds: what else is needed.
        few: what few gradients decide, in words.
    """

    noise: float
    norm: float
    weight: float
    gradients: int
    products: np.ndarray
    at: np.ndarray
    bounds: Bounds
    few: str


class Excess(NamedTuple):
    """What the estimate of ς may lack.

    Attributes:
        growth: relative growth of ς with the later gradients.
        lacking: share that sparse gradients lack.
    """

    growth: float
    lacking: float = 0.0


def unknown(reason: str) -> DualScale:
    """Nothing is known, and why."""
    return DualScale(math.nan, math.nan, math.nan, reason)


def growth_of(noise: float, before: float | None) -> float:
    """Relative growth of ς since an earlier estimate, 0 or more."""
    if before is None:
        return 0.0
    return max(noise / before - 1, 0.0) if before else math.inf


def dual_scale(
    of: DualMoments, confidence: float, excess: Callable[[], Excess], gradient: Callable[[], float]
) -> DualScale:
    r"""The estimate and its limits.

    With N the mean of ⟨gᵢ, s(ḡᵢ₋₁)⟩ over the second half of the gradients and V the variance of √wᵢ times these
    products, which bounds that of √W ‖ḡ‖ for normal noise (Poincaré's inequality),

        N − t s(N) ≤ ‖∇f‖ ≤ ‖ḡ‖ + t √(V/W),

    and the upper limit is replaced by `most` if that is smaller. The relative error of ς is at most half of that of tr
    Σ̂ if all parts of the noise have the same relative error. For sparse or heavy-tailed gradients ς is too small on
    average. The upper limit is increased by twice its growth and by twice the share that is lacking, and it is not
    given if either is large, or the fitted tails are so heavy that few values decide Σ̂.

    Args:
        of: norms, products and weights.
        confidence: confidence of the limits.
        excess: function that returns what ς may lack.
        gradient: function that returns the estimate of ‖∇f‖, to be kept between its bounds.

    Sources: the noise scales, arXiv 2602.03001; their limits are derived here.
    """
    noise, norm = of.noise, of.norm
    trace_error, most, share, heavy = of.bounds
    if share == 0:
        exact = (noise / norm) ** 2 if norm else math.inf
        return DualScale(exact, exact, exact)
    if of.gradients < LEAST:
        return unknown(f"there are {of.gradients} gradients, and {LEAST} or more are needed; give more gradients")
    if noise == 0:
        return DualScale(0.0, 0.0, 0.0) if norm else unknown("there is neither gradient nor noise")
    own, before = of.at[:, 0], of.at[:, 2]
    late = before >= before.max() / 2
    weights = own[late] / own[late].sum()
    least = float(weights @ of.products[late])
    count = int(late.sum())
    spread = float((own[late] * (of.products[late] - least) ** 2).sum()) / (count - 1)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, count - 1))
    error = quantile * trace_error / 2
    low = least - math.hypot(quantile * math.sqrt(share * spread / own[late].sum()), error * max(least, 0.0))
    high = norm + math.hypot(quantile * math.sqrt(share * spread / of.weight), error * norm)
    high = min(high, most * (1 + error))
    growth, lacking = excess()
    lower = (noise / high) ** 2
    upper = math.inf if low <= 0 else (noise * (1 + 2 * growth + 2 * lacking) / low) ** 2
    if (growth > _GROWTH or lacking > _LACKING or heavy) and low > 0:
        reason = (
            f"the gradients are so sparse or heavy-tailed that few {of.few}; give more gradients, or gradients of "
            "larger batches"
        )
        return DualScale(math.nan, lower, math.nan, reason)
    if low <= 0:
        return DualScale(math.nan, lower, upper, "the gradient is not resolved; give more gradients")
    estimate = (noise / max(gradient(), low)) ** 2
    return DualScale(min(max(estimate, lower), upper), lower, upper)
