r"""The noise scale of methods that follow the sign of the gradient, (Σ σⱼ/‖∇f‖₁)², from moments per coordinate.

Its limits are those of `_dual_scale` with s = sign. Between them an estimate follows from the distribution of the
noncentralities |∂f|√W/σ under which the observed |ḡ|√W/σ̂ are most likely.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from sdelens.diagnosis._dual_scale import Bounds, DualMoments, DualScale, Excess, dual_scale, growth_of
from sdelens.diagnosis._shares import mixture

__all__ = ["SignMoments", "sign_scale"]


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
        bounds: as in `DualMoments`.
    """

    mean: np.ndarray
    variance: np.ndarray
    weight: float
    df: int
    products: np.ndarray
    sizes: np.ndarray
    at: np.ndarray
    earlier: tuple[int, float] | None
    bounds: Bounds


def sign_scale(of: SignMoments, confidence: float) -> DualScale:
    r"""The estimate and its limits.

    σ̂ is divided by its mean E σ̂/σ for normal noise. With R the ratio of Σ σ̂ to its value √(π/2) E‖δ‖₁ for normal noise
    δ, 3(R² − 1)/(8K) of it is lacking if δ is 0 or normal at random; this is above 0.036 where one value decides each
    σ̂. And Σ σ̂ grows with the number of gradients.

    Sources: the noise scale, arXiv 2602.03001; what is lacking is derived here.
    """
    deviation = np.sqrt(of.variance)
    noise = float(deviation.sum()) / (1.0 if of.bounds.share == 0 else _shrinkage(of.df))
    norm = float(np.abs(of.mean).sum())
    common = DualMoments(
        noise, norm, of.weight, of.df + 1, of.products, of.at, of.bounds,
        "values decide the standard deviations of many coordinates",
    )  # fmt: skip
    return dual_scale(
        common,
        confidence,
        lambda: Excess(growth_of(noise, _earlier(of)), _lacking(of, noise)),
        lambda: _norm(of, deviation, noise),
    )


def _shrinkage(df: int) -> float:
    """E σ̂/σ of normal noise."""
    return math.sqrt(2 / df) * math.exp(float(special.gammaln((df + 1) / 2) - special.gammaln(df / 2)))


def _earlier(of: SignMoments) -> float | None:
    """Σ σ̂ of the first K′ gradients."""
    if of.earlier is None:
        return None
    count, roots = of.earlier
    return roots / math.sqrt(count - 1) / _shrinkage(count - 1)


def _lacking(of: SignMoments, noise: float) -> float:
    own, before = of.at[:, 0], of.at[:, 1]
    normal = math.sqrt(math.pi / 2) * float((of.sizes / np.sqrt(1 / own + 1 / before)).mean())
    return max(3 * ((noise / normal) ** 2 - 1) / (8 * (of.df + 1)), 0.0)


def _norm(of: SignMoments, deviation: np.ndarray, noise: float) -> float:
    """‖∇f‖₁ under the most likely distribution of noncentralities, to which a coordinate contributes with weight σ̂."""
    share, still = of.bounds.share, deviation == 0
    size = np.sqrt(of.weight / share) / np.where(still, 1, deviation)
    grid, shares = mixture((np.abs(of.mean) * size)[~still], deviation[~still], of.df, np.zeros(0), 0.0)
    return noise * math.sqrt(share / of.weight) * float(grid @ shares) + float(np.abs(of.mean[still]).sum())
