r"""The noise scale of methods that orthogonalise the gradient, (ς/‖∇f‖⁎)², with ‖·‖⁎ the nuclear norm.

For an m × n matrix with m ≤ n (transposed otherwise), with the noise N of one sample,

    ς = tr (E NNᵀ)^½,    E‖N‖⁎ ≤ ς,

which for a diagonal matrix is Σ σⱼ, so that the scale is that of the ℓ1 norm. Several matrices contribute the sums of
their ς and ‖∇f‖⁎. Limits are those of `_dual_scale` with s(ḡ) = UVᵀ for ḡ = USVᵀ, r = Σ m and ḡᵢ₋₁ replaced by the mean
at the last checkpoint, i = 2, 3, 5, 9, ….

Between them, ‖∇f‖⁎ follows from norms of means of fewer gradients. For normal noise of variance τ times that of one
sample, F(τ) = E‖∇f + √τN‖⁎ solves the heat equation, and by Stein's lemma

    dF/dτ = D/(2τ),   D(τ) = E⟨√τN, s(∇f + √τN)⟩,   ‖∇f‖⁎ = F(1/W) − ∫₀^{1/W} D/(2τ) dτ.

D is observed at the checkpoints: ⟨ḡ − ḡ′, s(ḡ)⟩ with ḡ′ the mean of the gradients after them. Where singular values of
gradient and noise add in quadrature, D = aτ/√(b + τ), from τ for small noise to √τ for large; a and b are fitted.
"""

import math
from typing import NamedTuple

import numpy as np

from sdelens.diagnosis._dual_scale import Bounds, DualMoments, DualScale, Excess, dual_scale, growth_of
from sdelens.diagnosis.nuclear_sums import oriented, root_trace

__all__ = ["NuclearMoments", "Step", "nuclear_scale"]

_FITTED = 3
"""Number of the latest checkpoints to which D is fitted."""


class Step(NamedTuple):
    """Mean and noise at a checkpoint, and the gradients from there to the next one.

    Attributes:
        gradients, weight: K′ and W′ of the mean.
        norm: ‖ḡ‖⁎.
        root: tr (ΣδδᵀwW/(W + w))^½ with the deviations δ from the means before.
        later: weighted mean of ⟨g, s(ḡ)⟩ over the later gradients.
        later_weight: their weight.
    """

    gradients: int
    weight: float
    norm: float
    root: float
    later: float
    later_weight: float


class NuclearMoments(NamedTuple):
    """What the estimate needs of the matrices of one group.

    Attributes:
        means: ḡ of every matrix.
        grams: Gram matrix of its noise of one sample, E NNᵀ, of its shorter side.
        steps: the checkpoints, in the order of their numbers of gradients.
        weight, gradients, products, at, bounds: as in `DualMoments`.
    """

    means: list[np.ndarray]
    grams: list[np.ndarray]
    steps: list[Step]
    weight: float
    gradients: int
    products: np.ndarray
    at: np.ndarray
    bounds: Bounds


def nuclear_scale(of: NuclearMoments, confidence: float) -> DualScale:
    r"""The estimate and its limits; the eigenvalues of two m × m matrices per matrix.

    ς grows with the number of gradients if the noise of one gradient has few of the directions of the noise of all.

    Sources: the noise scale of the dual norm, arXiv 2602.03001; its noise as trace of a square root, limits and
    estimate are derived here.
    """
    noise = sum(float(root_trace(gram, np.linalg.eigvalsh)) for gram in of.grams)
    norm = sum(float(root_trace(m @ m.T, np.linalg.eigvalsh)) for m in map(oriented, of.means))
    common = DualMoments(
        noise, norm, of.weight, of.gradients, of.products, of.at, of.bounds,
        "gradients decide the noise of many directions",
    )  # fmt: skip
    earlier = [s.root / math.sqrt(s.gradients - 1) for s in of.steps if 2 <= s.gradients <= 2 * of.gradients / 3]
    return dual_scale(
        common,
        confidence,
        lambda: Excess(growth_of(noise, earlier[-1] if earlier else None)),
        lambda: norm - _bias(of),
    )


def _bias(of: NuclearMoments) -> float:
    """F(τ) − F(0) at τ = 1/W, from a and b fitted to D by relative least squares of τ²/D² = (b + τ)/a²."""
    used = [s for s in of.steps if s.later_weight >= s.weight / 4][-_FITTED:]
    share = of.bounds.share
    drawn = (1 - share) / of.gradients
    excess = np.array([s.norm - s.later for s in used])
    if not used or excess.min() <= 0:
        return 0.0
    whole = np.array([1 / s.weight for s in used])
    # Of a finite population, gradients after the checkpoint are those that were not drawn before.
    at, tau = whole * np.array([1 - drawn * s.gradients for s in used]), share / of.weight
    seen = (whole / excess) ** 2
    rows = np.stack([np.full_like(at, at.mean()), at], axis=1) / seen[:, None]
    start, slope = _nonnegative(rows) * np.array([at.mean(), 1.0])
    if slope == 0:
        return tau / (2 * math.sqrt(start))
    return (math.sqrt(start + slope * tau) - math.sqrt(start)) / slope


def _nonnegative(rows: np.ndarray) -> np.ndarray:
    """The x ≥ 0 of shape (2,) that minimises the squares of `rows` x − 1."""
    from scipy.optimize import nnls

    found: np.ndarray = nnls(rows, np.ones(len(rows)))[0]
    return found
