r"""Uncertainty of a gradient's square, of the trace of its noise and of their ratio, from scalars of one pass.

Let gᵢ be the mean of wᵢ samples, Wᵢ the sums of wᵢ, and Uᵢ the unbiased estimate of ‖∇f‖² from the first i gradients.
Welford's recursion gives two scalars per gradient,

    qᵢ = wᵢWᵢ₋₁/Wᵢ ‖gᵢ − ḡᵢ₋₁‖²,   Dᵢ = √wᵢ (gᵢᵀḡᵢ₋₁ − Uᵢ₋₁) = √wᵢ ((gᵢ − ḡᵢ₋₁)ᵀḡᵢ₋₁ + tr Σ̂ᵢ₋₁/Wᵢ₋₁).

With v₁ = ∇fᵀΣ∇f and v₂ = tr Σ², for every law of independent gradients with a covariance Σ,

    E qᵢ = tr Σ,   E Dᵢ = 0,   E Dᵢ² = v₁(1 + wᵢ/Wᵢ₋₁) + v₂(1/Wᵢ₋₁ + 2wᵢ(i − 1)/((i − 2)Wᵢ₋₁²)),
    Var(‖ḡ‖² − tr Σ̂/W) = 4v₁/W + 2v₂K/((K − 1)W²),   Var tr Σ̂ ≈ Var(q)/K

(exact for equal wᵢ), and the covariance of the two estimates is 2/√(WK) times that of D and q. All correlations between
coordinates, and a scale common to the coordinates of a gradient, are included, and no gradient needs to be kept.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

__all__ = ["FEW", "Pair", "limits", "pair", "residuals"]

FEW: Final = 5.0
"""Effective number of gradients below which the error of tr Σ is not estimated."""
_ROUNDS: Final = 12
_MANY: Final = 1e6
_TOP: Final = 0.7
"""The tail of q is fitted to its 0.7 K^(2/3) largest values."""
_INDEX: Final = 0.95
"""Largest tail index that is used for the mean of q, which does not exist from 1 on."""
_MATERIAL: Final = 0.1
"""Share of the variance of `square` − ρ `trace` from which the error of `trace` matters."""


class Pair(NamedTuple):
    """‖∇f‖² and tr Σ (or gᵀHg and tr HΣ) with their errors.

    Attributes:
        square: unbiased estimate of ‖∇f‖².
        trace: unbiased estimate of tr Σ, of one sample.
        square_variance: variance of `square`, evaluated at its estimate.
        floor, slope: the variance of `square` − `lean` `trace`, independent of `trace`, is floor + slope ‖∇f‖².
        trace_variance: variance of `trace`.
        lean: covariance of `square` and `trace`, divided by `trace_variance`.
        freedom: (tr Σ)²/tr Σ², the effective number of coordinates of the noise.
        degrees: degrees of freedom of the estimate of floor + slope ‖∇f‖².
        skew: skewness of `trace`.
        missing: the increase of `trace` if the tail of q continues beyond its largest value as a power law.
        effective: (Σ q)²/Σ q², the effective number of gradients in `trace`.
        gradients: number of gradients.
    """

    square: float
    trace: float
    square_variance: float
    trace_variance: float
    floor: float = 0.0
    slope: float = 0.0
    lean: float = 0.0
    freedom: float = 1.0
    degrees: float = 1.0
    skew: float = 0.0
    missing: float = 0.0
    effective: float = math.inf
    gradients: int = 0

    @property
    def depends_on_trace(self) -> bool:
        """Whether the error of `trace` is a material part of that of the ratio."""
        if self.square <= 0 or self.trace <= 0 or not math.isfinite(self.trace_variance):
            return False
        part = (self.square / self.trace - self.lean) ** 2 * self.trace_variance
        return part > _MATERIAL * (part + self.floor + self.slope * self.square)


def residuals(spread: np.ndarray, products: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dᵢ and what their moments are made of; where i = 2 again, other gradients at other points may begin.

    Args:
        spread: qᵢ for i = 2, …, K, shape (M, …).
        products: √wᵢ (gᵢ − ḡᵢ₋₁)ᵀḡᵢ₋₁, but √w₂ g₂ᵀg₁ for i = 2, of the same shape.
        at: wᵢ, Wᵢ₋₁ and i − 1, shape (M, 3).

    Returns:
        D, of the shape of `spread`, where D₂ = √w₂ g₂ᵀg₁ is not centred; and an array of shape (M, 4): the factors of
        v₁ and v₂ in E D², −Cov(D, q)/v₂ for ∇f = 0, and the multiple of ‖∇f‖² to be subtracted from D.
    """
    own, before, number = np.asarray(at, float).reshape(-1, 3).T
    over, root, later = own / before, np.sqrt(own), number > 1
    order = np.arange(len(number))
    start = np.maximum.accumulate(np.where(later, 0, order))
    seen = np.where(later, order - start, 1)
    total = np.concatenate([np.zeros_like(spread[:1]), np.cumsum(spread, axis=0)])
    trace = ((total[order] - total[start]).T * (later * root / (seen * before))).T
    second = 1 + 2 * later * over * number / np.maximum(number - 1, 1)
    pull, centre = 2 * root / (own + before), np.where(later, 0, root)
    return products + trace, np.stack([1 + over, second / before, pull, centre], axis=1)


def pair(
    square: float,
    trace: float,
    spread: np.ndarray,
    cross: np.ndarray,
    design: np.ndarray,
    inverse: tuple[float, float],
    share: float = 1,
    size: float = math.inf,
    gradients: int | None = None,
) -> Pair:
    """The estimates with their errors.

    Args:
        square: unbiased estimate of ‖∇f‖².
        trace: unbiased estimate of tr Σ.
        spread: qᵢ, shape (M,).
        cross: D from `residuals`, shape (M,).
        design: the other array from there, shape (M, 4).
        inverse: 1/W and K/((K − 1)W²); for a mean of several such estimates, the values that replace them.
        share: share of the population that was not drawn: 1 for an infinite one, 0 if all of it was drawn.
        size: number of coordinates d, for which tr Σ² ≥ (tr Σ)²/d.
        gradients: number of gradients in a mean of several estimates, by default one more than `spread` has values.
    """
    count = len(spread) + 1
    if share == 0:
        return Pair(square, trace, 0.0, 0.0, gradients=count)
    if count < 3:
        return Pair(square, trace, math.inf, math.inf, gradients=count)
    trace_variance = float(spread.var(ddof=1)) / len(spread)
    cross, centred = cross - design[:, 3] * square, spread - spread.mean()
    lean = _slope(cross, centred, design)
    least = trace**2 / size
    whole = _variance(cross**2, design, square, trace, inverse, least)
    rest = _variance((cross - lean * centred) ** 2, design, square, trace, inverse, least)
    skew, missing = _tail(spread)
    return Pair(
        square,
        trace,
        share * (whole.floor + whole.slope * max(square, 0.0)),
        share * trace_variance,
        share * rest.floor,
        share * rest.slope,
        2 * math.sqrt(inverse[0] * len(spread) * (len(spread) / (gradients or len(spread)))) * lean,
        whole.freedom,
        rest.degrees,
        skew,
        share * missing,
        float(spread.sum() ** 2 / (spread @ spread)) if spread.any() else math.inf,
        count,
    )


class _Variance(NamedTuple):
    """floor + slope ‖∇f‖², with the numbers `freedom` and `degrees` of `Pair`."""

    floor: float
    slope: float
    freedom: float
    degrees: float


def _variance(
    squares: np.ndarray, design: np.ndarray, square: float, trace: float, inverse: tuple[float, float], least: float
) -> _Variance:
    """4v₁/W + 2v₂K/((K − 1)W²) from squares of D, where v₂ is `least` or more.

    Near ∇f = 0, v₁ and v₂ cannot be separated. Then v₂ is shrunk towards its value without a gradient, and v₁/‖∇f‖²
    towards tr Σ²/tr Σ, its value for a gradient distributed like the noise; the weight is the error of ‖∇f‖². All
    of these are sums of the squares with the weights `apart` and `along`.
    """
    first, second = design.T[:2]
    rows, alone = _components(squares, first, second), 1 / (second * len(squares))
    known, doubt = max(square, 0.0), math.sqrt(2 * float(alone @ squares) * inverse[1])
    if known + doubt == 0 or trace == 0:
        return _Variance(2 * least * inverse[1], 0.0, math.inf, float(len(squares)))
    drawn = doubt / (known + doubt)
    apart = drawn * alone + (1 - drawn) * rows[1]
    along = (rows[0] + doubt * apart / abs(trace)) / (known + doubt)
    noise = max(float(apart @ squares), least)
    # A mean over n windows has n times the degrees of freedom.
    freedom = max(trace**2 / noise, 1.0) * inverse[1] / inverse[0] ** 2 if noise > 0 else math.inf
    parts = (2 * inverse[1] * apart + 4 * inverse[0] * known * along) * (rows @ squares @ np.stack([first, second]))
    degrees = float(parts.sum() ** 2 / (parts @ parts)) if parts.any() else math.inf
    degrees = min(max(degrees, 2.0), float(len(squares)))
    return _Variance(2 * noise * inverse[1], 4 * float(along @ squares) * inverse[0], freedom, degrees)


def _slope(cross: np.ndarray, spread: np.ndarray, design: np.ndarray) -> float:
    """Slope of D on the centred q, so that what remains of D and of q has no covariance.

    The bias for ∇f = 0 is subtracted, and the slope is shrunk by the share of its square that its error, or the bias,
    explains: it matters where it is significant, and only adds noise where it is not.
    """
    first, second, pull, _ = design.T
    squares = cross**2
    found = _components(squares, first, second) @ squares
    mean = np.maximum(found @ np.stack([first, second]), 1e-6 * float(squares.mean()))
    if not mean.any() or not spread.any():
        return 0.0
    weight = spread / mean
    size = float(weight @ spread)
    bias = -float(found[1]) * float((pull / mean).sum()) / size
    slope = float(weight @ cross) / size - bias
    error = float(weight**2 @ (cross - slope * spread) ** 2) / size**2 + bias**2
    return slope * max(1 - error / slope**2, 0.0) if slope else 0.0


def _components(squares: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Weights, shape (2, M), with which `squares` give v₁ and v₂ of 0 or more, where E squares = v₁ first + v₂ second.

    Each square is weighted by its inverse variance, which is proportional to its squared mean.
    """
    size = float(squares.mean())
    mean, rows = np.ones_like(squares), np.zeros((2, len(squares)))
    for _ in range(_ROUNDS if size > 0 else 1):
        a, b = first / mean**2, second / mean**2
        aa, ab, bb = float(a @ first), float(a @ second), float(b @ second)
        determinant = aa * bb - ab * ab
        none = np.zeros_like(a)
        rows = np.stack([none, b / bb])
        if determinant > 1e-9 * aa * bb:
            both = np.stack([bb * a - ab * b, aa * b - ab * a]) / determinant
            found = both @ squares
            rows = both if found.min() >= 0 else rows if found[0] < 0 else np.stack([a / aa, none])
        mean = np.maximum(rows @ squares @ np.stack([first, second]) / (size or 1), 1e-6)
    return rows


def _tail(spread: np.ndarray) -> tuple[float, float]:
    """Skewness of the mean of q, and what its tail beyond the sample adds to it.

    The largest values, less the lower quartile, are taken as a power law from the next smaller one on, with Hill's
    estimate of its index ξ and hence the mean (that value)/(1 − ξ).
    """
    count = len(spread)
    centred = spread - spread.mean()
    size = math.sqrt(float((centred**2).mean()))
    if count < 4 or size == 0:
        return 0.0, 0.0
    skew = float((centred**3).mean()) / size**3 / math.sqrt(count)
    top = round(_TOP * count ** (2 / 3))
    ordered = np.sort(spread)
    ordered = ordered - ordered[(count - 1) // 4]
    start, above = float(ordered[-top - 1]), ordered[-top:]
    if start <= 0:
        return skew, 0.0
    index = min(float(np.log(above / start).mean()), _INDEX)
    return skew, top / count * max(start / (1 - index) - float(above.mean()), 0.0)


def limits(of: Pair, confidence: float) -> tuple[float, float]:
    r"""Limits of ‖∇f‖²/tr Σ by Fieller's method, 0 or more; the upper is infinite if tr Σ may be 0.

    With S = `square`, T = `trace` and ℓ = `lean`, they bound the ρ with

        (S − ρT)² ≤ t² (floor + slope ρT) + t²_{K−1} (ρ − ℓ)² Var T,

    where t is the quantile of Student's t with `degrees` degrees of freedom, and t_{K−1} that with K − 1. Because q is
    skewed, T is more often too small than too large: for the lower limit it is increased by `Pair.missing`, or by what
    Hall's transformation adds to its own upper limit, whichever is more. Without a gradient S is skewed like χ² with
    `freedom` degrees of freedom; for the lower limit, its error is widened there by the ratio of the quantile of that
    distribution to the normal one. For the upper limit a negative S is replaced by 0, so that not every ratio is
    excluded.

    Sources: Hall (1992), *On the removal of skewness by transformation*; a mean with its tail as a power law, Peng
    (2001), *Estimating the mean of a heavy tailed distribution*; the combination is derived here.
    """
    if of.trace == 0 and of.square > 0:  # no noise at all
        return (math.inf, math.inf)
    if of.trace <= 0:
        return (0.0, math.inf)
    if not math.isfinite(of.trace_variance):
        return (0.0, math.inf)
    level, wider = 0.5 + confidence / 2, 1.0
    quantile, squared = (float(stats.t.ppf(level, df)) for df in (of.gradients - 1, of.degrees))
    added = max(math.sqrt(of.trace_variance) * (_transformed(quantile, of.skew) - quantile), of.missing)
    if of.freedom < _MANY:
        skewed = float(stats.chi2.ppf(level, of.freedom)) / of.freedom - 1
        wider = max(skewed / math.sqrt(2 / of.freedom) / float(stats.norm.ppf(level)), 1.0)
    variances = (squared**2 * of.floor, squared**2 * of.slope * of.trace, quantile**2 * of.trace_variance)
    _, b, c, root = _fieller(of.square, of.trace + added, of.lean, (variances[0] * wider**2, *variances[1:]))
    low = c / (b + root) if of.square > 0 and c > 0 else 0.0
    a, b, _, root = _fieller(max(of.square, 0.0), of.trace, of.lean, variances)
    return low, (b + root) / a if a > 0 else math.inf


def _fieller(
    square: float, trace: float, lean: float, variances: tuple[float, float, float]
) -> tuple[float, float, float, float]:
    """a, b, c, √(b² − ac) of aρ² − 2bρ + c = (S − ρT)² − variances[0] − variances[1] ρ − variances[2] (ρ − ℓ)²."""
    a = trace**2 - variances[2]
    b = square * trace + variances[1] / 2 - variances[2] * lean
    c = square**2 - variances[0] - variances[2] * lean**2
    return a, b, c, math.sqrt(max(b * b - a * c, 0.0))


def _transformed(t: float, skew: float) -> float:
    """The distance below its mean, in standard errors, at which Hall's cubic transformation of t is −t."""
    if abs(skew) < 1e-6:
        return t
    return -3 / skew * (math.copysign(abs(inner := 1 - skew * (t + skew / 6)) ** (1 / 3), inner) - 1)
