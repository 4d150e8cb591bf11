r"""The Student t family continued through the normal law to bounded supports, and its fit with a common shape.

    p(u) = c(κ) (1 + κu²)^{−(1/κ + 1)/2},   u = (x − μ)/s,   κ = 1/ν.

κ > 0 is Student t, κ = 0 the normal law, κ < 0 Pearson's type II on |u| < 1/√−κ; the variance is s²/(1 − 2κ)
throughout, infinite for κ ≥ ½.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from scipy import optimize, special, stats

__all__ = ["BOUNDS", "Fit", "efficiency", "fit", "log_constant"]

BOUNDS: Final = (-0.25, 4.0)
"""Range of κ for fits: below −1/3 the score has no variance, above 4 (ν = ¼) values cannot be distinguished."""
_SERIES: Final = 1e-4
_NEWTON: Final = 60
_HALVINGS: Final = 30
_STEP: Final = 0.01
_DIFFERENCE: Final = 1e-3
_BLOCKS: Final = 20
_NODES: Final = (-3.0, -1.5, 0.0, 1.5, 3.0)
"""Nodes in standard errors of log(κ + ½)."""
_LEAST: Final = -0.32
"""Smallest κ at which the likelihood may be evaluated."""


class Fit(NamedTuple):
    """Common shape of many coordinates.

    Attributes:
        kappa: κ at the maximum of the adjusted profile likelihood; possibly an end of `BOUNDS`.
        sem: its standard error, by a jackknife over blocks of draws; NaN at an end of `BOUNDS`.
        lower, upper: limits; infinite where they lie beyond `BOUNDS`.
    """

    kappa: float
    sem: float
    lower: float
    upper: float


def log_constant(kappa: float) -> float:
    """Logarithm of c(κ): Γ((ν+1)/2)/(√(πν) Γ(ν/2)) for κ > 0, Γ(m/2 + 1)/(√(πm) Γ((m+1)/2)), m = −1/κ, for κ < 0."""
    if abs(kappa) < 0.03:  # the expansion of the ratio of gamma functions; its next term is below 2e-14
        k2 = kappa * kappa
        return -0.5 * math.log(2 * math.pi) - kappa * (0.25 - k2 * (1 / 24 - k2 * (1 / 20 - 17 / 112 * k2)))
    if kappa > 0:
        df = 1 / kappa
        return float(special.gammaln((df + 1) / 2) - special.gammaln(df / 2)) - 0.5 * math.log(math.pi * df)
    m = -1 / kappa
    return float(special.gammaln(m / 2 + 1) - special.gammaln((m + 1) / 2)) - 0.5 * math.log(math.pi * m)


def efficiency(kappa: float) -> float:
    """(2p(0)σ)² = 4c(κ)²/(1 − 2κ), the efficiency of the sign at small signal; infinite without a variance."""
    return math.inf if kappa >= 0.5 else 4 * math.exp(2 * log_constant(kappa)) / (1 - 2 * kappa)


def fit(x: np.ndarray, confidence: float) -> Fit:
    r"""Common κ of J coordinates, each with a different location and scale, from K draws of each.

    The likelihood is that of the maximal invariant, ∫∫ Πᵢ p((xᵢ − μ)/s) s^{−K} dμ d(log s), by Laplace's method:

        ℓ(κ) = Σⱼ [ℓⱼ(κ, μ̂ⱼ, ŝⱼ) − ½ log det Jⱼ],

    where Jⱼ is the observed information of (μ, log s). The score of a plain profile likelihood has a mean of O(1) in
    every coordinate, and these add up over J coordinates; here the mean is O(1/K).

    Coordinates of one draw may depend on each other, so bias and error are estimated by leaving out blocks of draws:
    a jackknife in log(κ + ½), with Student's t of 19 degrees of freedom. If the maximum is an end of `BOUNDS`, the
    other limit is the κ whose score ℓ′ is t standard errors from 0; these come from the scatter of the draws' scores.

    Args:
        x: shape (K, J), finite, without coordinates in which many values other than 0 are equal. Values of exactly 0
            are left out: where they occur, they have a probability of their own.
        confidence: confidence of the limits.

    Returns:
        `Fit`.

    Source: the adjustment is that of Cox and Reid (1987), *Parameter orthogonality and approximate conditional
    inference*; that it is Laplace's method for the invariant's likelihood of a location and scale is derived here.
    """
    taken = x != 0
    x = np.where(taken, x, np.nan)
    x = x - np.nanmedian(x, axis=0)
    x = np.where(taken, x / np.nanmedian(np.abs(x), axis=0), 0)
    state, (low, high) = _Profile(x, taken), BOUNDS
    whole = state.maximum(low, high)
    if min(whole - low, high - whole) < 1e-3:
        end, side = (low, 1) if whole < 1 else (high, -1)
        reached = _limit(state, end, side, float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1)))
        return Fit(end, math.nan, *((-math.inf, reached) if side > 0 else (reached, math.inf)))
    slope = (state.score(whole - _STEP)[0] - state.score(whole + _STEP)[0]) / (2 * _STEP)
    at = math.log(whole + 0.5)
    width = math.sqrt(state.score(whole)[1]) / slope / (whole + 0.5) if slope > 0 else math.inf
    width = min(width, (at - math.log(_LEAST + 0.5)) / _NODES[-1])
    nodes = [math.exp(at + width * n) - 0.5 for n in _NODES]
    number = min(_BLOCKS, len(x))
    block = np.arange(len(x)) % number
    # Maxima of polynomials through five values of ℓ, for the whole and for the blocks alike: the error of the
    # polynomial is common to all of them, and cancels in their differences.
    values, starts = [], []
    for kappa in nodes:
        values.append(state.value(kappa))
        starts.append((state.a, state.b))
    top = _peak(values)
    parts = []
    for b in range(number):
        left = _Profile(x[block != b], taken[block != b])
        values = []
        for kappa, start in zip(nodes, starts, strict=True):
            left.a, left.b = start
            values.append(left.value(kappa))
        parts.append(_peak(values))
    value = at + width * (number * top - (number - 1) * float(np.mean(parts)))
    sem = width * math.sqrt((number - 1) * float(np.var(parts)))
    half = float(stats.t.ppf(0.5 + confidence / 2, number - 1)) * sem
    kappa, lower, upper = (math.exp(v) - 0.5 for v in (value, value - half, value + half))
    kappa = min(max(kappa, low), high)
    return Fit(kappa, sem * (kappa + 0.5), lower if lower > low else -math.inf, upper if upper < high else math.inf)


def _peak(values: list[float]) -> float:
    """Position of the maximum of the polynomial through values at `_NODES`, in the same units."""
    powers = np.vander(np.array(_NODES), increasing=True)
    polynomial = np.polynomial.Polynomial(np.linalg.solve(powers, np.array(values) - max(values)))
    flat = polynomial.deriv().roots()
    flat = flat[np.abs(flat.imag) < 1e-9].real
    inside = np.concatenate([flat[np.abs(flat) <= _NODES[-1]], [_NODES[0], _NODES[-1]]])
    return float(inside[np.argmax(polynomial(inside))])


def _limit(state: "_Profile", kappa: float, side: int, t: float) -> float:
    """The κ on one side at which the score is t standard errors from 0; infinite if a bound is reached first."""

    def excess(at: float) -> float:
        slope, variance = state.score(at)
        return -side * slope / math.sqrt(variance) - t

    bound = BOUNDS[0] if side < 0 else BOUNDS[1]
    near, step = kappa, 0.01
    if excess(near) > 0:  # farther beyond the bound than the uncertainty of the draws
        return kappa
    while (bound - near) * side > 0:
        far = near + side * min(step, abs(bound - near))
        if excess(far) > 0:
            return float(optimize.brentq(excess, near, far, xtol=1e-5))
        near, step = far, 2 * step
    return side * math.inf


class _Profile:
    """The adjusted profile likelihood; its maximum over locations and scales is kept between calls.

    The parameters are a = 1/s and b = μ/s: for κ ≤ 0 the likelihood is concave in them, and for 0 < κ ≤ 1 it has one
    maximum (Kent and Tyler 1991).
    """

    def __init__(self, x: np.ndarray, taken: np.ndarray) -> None:
        self.x, self.taken, self.count = x, taken, taken.sum(axis=0)
        self.a, self.b = np.full(x.shape[1], 0.7), np.zeros(x.shape[1])

    def maximum(self, low: float, high: float) -> float:
        """The κ in [low, high] at which ℓ is largest, by Brent's method in log(κ + ½)."""
        found = optimize.minimize_scalar(
            lambda t: -self.value(math.exp(t) - 0.5),
            bounds=(math.log(low + 0.5), math.log(high + 0.5)),
            method="bounded",
            options={"xatol": 1e-5},
        )
        return math.exp(float(found.x)) - 0.5

    def value(self, kappa: float) -> float:
        """ℓ(κ)."""
        likelihood, determinant = self._maximise(kappa)
        with np.errstate(invalid="ignore", divide="ignore"):
            adjusted = likelihood - 0.5 * np.log(determinant) - 2 * np.log(self.a)
        total = float(adjusted.sum()) + int(self.count.sum()) * log_constant(kappa)
        return total if math.isfinite(total) else -1e300

    def score(self, kappa: float) -> tuple[float, float]:
        """ℓ′(κ) and its variance."""
        ahead, behind = self.value(kappa + _DIFFERENCE), self.value(kappa - _DIFFERENCE)
        self._maximise(kappa)
        scores = self.scores(kappa)
        return (ahead - behind) / (2 * _DIFFERENCE), float(scores.var(ddof=1)) * len(scores)

    def scores(self, kappa: float) -> np.ndarray:
        """Σⱼ ψᵢⱼ up to a constant, shape (K,): the derivative in κ with locations and scales re-maximised."""
        a, b, x, taken = self.a, self.b, self.x, self.taken
        haa, hab, hbb, u, _ = self._second(kappa, a, b)
        v = u * u
        below = 1 + kappa * v
        mixed = taken * u * (1 - v) / below**2  # ∂ψ/∂κ
        ca, cb = -(x * mixed).sum(axis=0), mixed.sum(axis=0)
        determinant = haa * hbb - hab**2
        da, db = (hbb * ca - hab * cb) / determinant, (haa * cb - hab * ca) / determinant
        psi = (1 + kappa) * u / below
        own = -0.5 * (_l(kappa, v) + (1 + kappa) * _dl(kappa, v))
        out: np.ndarray = (taken * (own + da * (1 / a - x * psi) + db * psi)).sum(axis=1)
        return out

    def _likelihood(self, kappa: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Log-likelihood per coordinate; −∞ outside the support."""
        v = (a * self.x - b) ** 2
        inside = (1 + kappa * v.max(axis=0) > 0) & (a > 0)
        v = np.where(inside, v, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            out: np.ndarray = np.where(
                inside, self.count * np.log(a) - 0.5 * (1 + kappa) * (self.taken * _l(kappa, v)).sum(axis=0), -np.inf
            )
        return out

    def _second(self, kappa: float, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        """Observed information of (a, b), u, and the slope ψ of −log p."""
        x, u = self.x, a * self.x - b
        v = u * u
        below = 1 + kappa * v
        slope = (1 + kappa) * self.taken * (1 - kappa * v) / below**2
        haa = self.count / a**2 + (x * x * slope).sum(axis=0)
        return haa, -(x * slope).sum(axis=0), slope.sum(axis=0), u, (1 + kappa) * self.taken * u / below

    def _maximise(self, kappa: float) -> tuple[np.ndarray, np.ndarray]:
        """Maximise over (a, b); returns likelihoods and determinants of the information at the maximum.

        Uses Newton's method with halved steps and, where the information is not positive, steps of the EM algorithm.
        """
        a, b = self.a.copy(), self.b.copy()
        if kappa < 0:  # move into the support
            reach = np.abs(self.x - b / a).max(axis=0) * a * math.sqrt(-kappa)
            shrink = np.where(reach > 0.95, 0.95 / reach, 1)
            a, b = a * shrink, b * shrink
        value = self._likelihood(kappa, a, b)
        for _ in range(_NEWTON):
            haa, hab, hbb, u, psi = self._second(kappa, a, b)
            ga, gb = self.count / a - (self.x * psi).sum(axis=0), psi.sum(axis=0)
            determinant = haa * hbb - hab**2
            newton = (determinant > 0) & (hbb > 0)
            safe = np.where(newton, determinant, 1)
            da, db = (hbb * ga - hab * gb) / safe, (haa * gb - hab * ga) / safe
            if not newton.all():
                ea, eb = self._expectation(kappa, a, b, u)
                da, db = np.where(newton, da, ea), np.where(newton, db, eb)
            gain = np.abs(da * ga + db * gb)
            if gain.max() < 1e-8:
                break
            share = np.ones_like(a)
            for _ in range(_HALVINGS):
                trial = self._likelihood(kappa, a + share * da, b + share * db)
                worse = ~(trial >= value - 1e-11 * np.abs(value))
                if not worse.any():
                    break
                share = np.where(worse, share / 2, share)
            share = np.where(worse, 0, share)
            a, b, value = a + share * da, b + share * db, np.where(worse, value, trial)
            if not share.any():
                break
        self.a, self.b = a, b
        return value, determinant

    def _expectation(self, kappa: float, a: np.ndarray, b: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The step of the EM algorithm in (a, b), for κ > 0."""
        weight = (1 + kappa) * self.taken / (1 + kappa * u * u)
        mu = (weight * self.x).sum(axis=0) / weight.sum(axis=0)
        scale = np.sqrt((weight * (self.x - mu) ** 2).sum(axis=0) / self.count)
        return 1 / scale - a, mu / scale - b


def _l(kappa: float, v: np.ndarray) -> np.ndarray:
    """log(1 + κv)/κ."""
    if kappa == 0:
        return v
    out: np.ndarray = np.log1p(kappa * v) / kappa
    return out


def _dl(kappa: float, v: np.ndarray) -> np.ndarray:
    """The derivative of `_l` in κ."""
    small = np.abs(kappa * v) < _SERIES
    series = v * v * (-0.5 + kappa * v * (2 / 3 - 0.75 * kappa * v))
    if small.all():
        return series
    out: np.ndarray = np.where(small, series, (v / (1 + kappa * v) - _l(kappa, v)) / kappa)
    return out
