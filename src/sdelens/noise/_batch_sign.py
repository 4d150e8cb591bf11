r"""The law of the sign of a mini-batch's mean gradient, per coordinate.

A mini-batch's gradient is not normal: a ReLU unit that is off for an example gives a gradient of exactly 0, and the
values that are not 0 are skewed and heavy-tailed. Let q be the share of examples whose gradient gᵢ is not 0, and let μ,
s, γ, κ be the mean, standard deviation, skewness and excess kurtosis of these gradients. The number K of the B examples
with a gradient that is not 0 is binomial. Given K = k, the sum of their gradients has mean kμ and variance ks², and by
Edgeworth's expansion

    P(sum < 0 | k) = Φ(a) − φ(a) [γ(a² − 1)/(6√k) + κ(a³ − 3a)/(24k) + γ²(a⁵ − 10a³ + 15a)/(72k)],  a = −√k μ/s,

while for k = 0 the sum and its sign are 0, and for k = 1 the sign is that of one example. Where Bq is large the
expansion is applied to the whole batch at once.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

__all__ = ["POWERS", "GradientShape", "SignLaw", "edgeworth_signs", "normal_signs", "sampled_root"]

POWERS: Final[tuple[Callable[[Array, Array, Array], Array], ...]] = (
    lambda g, rms, shift: g / rms,
    lambda g, rms, shift: (g / rms) ** 2,
    lambda g, rms, shift: (g / rms) ** 3,
    lambda g, rms, shift: (g / rms) ** 4,
    lambda g, rms, shift: jnp.where(g == 0, 0, jnp.sign(g + shift)),
    lambda g, rms, shift: (g != 0).astype(g.dtype),
)
"""Functions averaged over per-example gradients g, scaled by their root mean square to avoid under- and overflow."""

_TERMS = 64
_FEW = 24.0
"""Up to this mean number of gradients that are not 0 in a batch, the law is a sum over their number."""


def sampled_root(signs: Array, refresh: int, dW: Array, independent: bool = False) -> Array:
    """Root of the covariance of K sampled signs, shape (K, d, P), times dW of shape (K, P), or (d, P) if independent.

    The error of their mean, kept for r steps, adds r/K of the noise of one step; that part is left out here.
    """
    samples = signs.shape[0]
    share = math.sqrt((samples - refresh) / (samples - 1) / samples)
    centred = signs - signs.mean(axis=0)
    if independent:
        return share * jnp.sqrt((centred**2).sum(axis=0)) * dW
    return share * (centred * dW[:, None]).sum(axis=0)


class GradientShape(NamedTuple):
    """Law of one example's gradient, element-wise.

    Attributes:
        variance: variance over all examples.
        share: q, the share of examples whose gradient is not 0.
        sign: mean sign of the gradients that are not 0, including the shift.
        sd: s, their standard deviation.
        skewness: γ, their skewness.
        kurtosis: κ, their excess kurtosis.
    """

    variance: Array
    share: Array
    sign: Array
    sd: Array
    skewness: Array
    kurtosis: Array

    @classmethod
    def of(
        cls, rms: Array, mean: Array, square: Array, cube: Array, fourth: Array, sign: Array, share: Array
    ) -> "GradientShape":
        """The law from the root mean square and the means over examples of `POWERS`."""
        q = jnp.maximum(share, jnp.finfo(share.dtype).tiny)
        sd, skewness, kurtosis = _central(mean / q, square / q, cube / q, fourth / q)
        variance = jnp.maximum(square - mean**2, 0) * rms**2
        return cls(variance, jnp.clip(share, 0, 1), sign / q, sd * rms, skewness, kurtosis)


class SignLaw(NamedTuple):
    """Moments of sign(g), element-wise, of the mean gradient g of a mini-batch.

    Attributes:
        mean: E sign(g).
        gradient: E g, at which the law was computed.
        spread: Var sign(g).
        slope: Cov(sign g, g)/Var g; for normal g it is the derivative of E sign(g) with respect to E g.
        variance: Var g.
    """

    mean: Array
    gradient: Array
    spread: Array
    slope: Array
    variance: Array

    def mean_at(self, gradient: Array) -> Array:
        """E sign(g) at another E g nearby, extrapolated with the slope."""
        return jnp.clip(self.mean + self.slope * (gradient - self.gradient), -1, 1)


def normal_signs(gradient: Array, variance: Array) -> SignLaw:
    """The law of sign(g) for normal g."""
    variance = _at_least_0(variance)
    sd = jnp.sqrt(variance)
    a = gradient / sd
    mean = lax.erf(a / math.sqrt(2))
    return SignLaw(mean, gradient, _at_least_0((1 - mean) * (1 + mean)), 2 * _density(a) / sd, variance)


def edgeworth_signs(gradient: Array, shift: Array, shape: GradientShape, batch_size: int) -> SignLaw:
    """The law of sign(g) for a mini-batch drawn with replacement from gradients of that shape.

    Args:
        gradient: E g.
        shift: the part of E g that all examples share, which is not included in `shape`.
        shape: law of one example's gradient without the shift.
        batch_size: B.
    """
    mean, q, s = gradient - shift, shape.share, shape.sd
    tiny = jnp.finfo(mean.dtype).tiny
    mu = mean / jnp.maximum(q, tiny)
    total_shift = batch_size * shift
    terms = min(batch_size, _TERMS)
    choose = jnp.asarray(_log_choose(batch_size, terms), mean.dtype)

    def add(k: Array, totals: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        expected, absolute, still = totals
        weight = _binomial(k, batch_size, choose[k], q)
        count = jnp.maximum(k, 1).astype(mean.dtype)
        sum_mean, sum_sd = k * mu + total_shift, jnp.sqrt(count) * s
        sign = _edgeworth(sum_mean, sum_sd, shape.skewness, shape.kurtosis, count)
        sign = jnp.where(k == 0, jnp.sign(total_shift), jnp.where(k == 1, shape.sign, sign))
        size = jnp.where(k == 0, jnp.abs(total_shift), _mean_size(sum_mean, sum_sd))
        still = still + jnp.where((k == 0) & (shift == 0), weight, 0)
        return expected + weight * sign, absolute + weight * size, still

    zero = jnp.zeros_like(mean)
    expected, absolute, still = lax.fori_loop(0, terms + 1, add, (zero, zero, zero))
    # Where very many gradients are not 0: moments of all gradients, including those that are 0, in units of s.
    unit = jnp.where(s > 0, s, 1)
    m = jnp.where(s > 0, mu / unit, 0)
    third = q * (shape.skewness + 3 * m + m**3)
    fourth = q * (shape.kurtosis + 3 + 4 * m * shape.skewness + 6 * m**2 + m**4)
    sd, skewness, kurtosis = _central(q * m, q * (1 + m**2), third, fourth)
    sum_mean, sum_sd = batch_size * gradient, math.sqrt(batch_size) * sd * s
    count = jnp.asarray(batch_size, mean.dtype)
    many = batch_size * q > _FEW
    e = jnp.where(many, _edgeworth(sum_mean, sum_sd, skewness, kurtosis, count), expected)
    still = jnp.where(many, 0, still)
    absolute = jnp.where(many, _mean_size(sum_mean, sum_sd), absolute) / batch_size
    variance = shape.variance / batch_size
    spread = _at_least_0(1 - still - e**2)
    # The Cauchy-Schwarz bound, which the approximations may violate.
    bound = jnp.sqrt(spread * variance)
    slope = jnp.clip(absolute - e * gradient, 0, bound) / jnp.maximum(variance, tiny)
    return SignLaw(e, gradient, spread, slope, variance)


def _central(mean: Array, square: Array, cube: Array, fourth: Array) -> tuple[Array, Array, Array]:
    """Standard deviation, skewness and excess kurtosis from raw moments of about 1; 0 where rounding dominates."""
    variance = square - mean**2
    spread = variance > 1e-6 * square  # below that, differences of float32 numbers are rounding errors
    shaped = variance > 1e-3 * square
    safe = jnp.where(spread, variance, 1)
    sd = jnp.where(spread, jnp.sqrt(safe), 0)
    skewness = (cube - 3 * mean * square + 2 * mean**3) / safe**1.5
    kurtosis = (fourth - 4 * mean * cube + 6 * mean**2 * square - 3 * mean**4) / safe**2 - 3
    return sd, jnp.where(shaped, skewness, 0), jnp.where(shaped, kurtosis, 0)


def _edgeworth(mean: Array, sd: Array, skewness: Array, kurtosis: Array, count: Array) -> Array:
    """E sign of a sum of `count` draws, from the sum's mean and standard deviation and the moments of one draw."""
    certain = sd <= 1e-6 * jnp.abs(mean)
    a = -mean / jnp.where(certain, 1, sd)
    a = jnp.where(certain, 0, a)
    below = 0.5 * (1 + lax.erf(a / math.sqrt(2)))
    first = skewness / jnp.sqrt(count) * (a**2 - 1) / 6
    second = kurtosis / count * (a**3 - 3 * a) / 24 + skewness**2 / count * (a**5 - 10 * a**3 + 15 * a) / 72
    below = below - _density(a) * (first + second)
    return jnp.where(certain, jnp.sign(mean), jnp.clip(1 - 2 * below, -1, 1))


def _mean_size(mean: Array, sd: Array) -> Array:
    """E|N(mean, sd²)|."""
    certain = sd <= 1e-6 * jnp.abs(mean)
    a = jnp.where(certain, 0, mean / jnp.where(certain, 1, sd))
    return jnp.where(certain, jnp.abs(mean), 2 * sd * _density(a) + mean * lax.erf(a / math.sqrt(2)))


def _log_choose(n: int, most: int) -> list[float]:
    """Logarithms of the binomial coefficients of n over 0, …, most."""
    return [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(most + 1)]


def _binomial(k: Array, n: int, choose: Array, q: Array) -> Array:
    """P(K = k) of n trials of probability q, given the logarithm of n over k."""
    some = jnp.where(k > 0, k * jnp.log(jnp.where(q > 0, q, 1)), 0)
    rest = jnp.where(k < n, (n - k) * jnp.log1p(-jnp.where(q < 1, q, 0)), 0)
    possible = ((q > 0) | (k == 0)) & ((q < 1) | (k == n))
    return jnp.where(possible, jnp.exp(choose + some + rest), 0)


def _density(a: Array) -> Array:
    return jnp.exp(-0.5 * a**2) / math.sqrt(2 * math.pi)


def _at_least_0(variance: Array) -> Array:
    """The variance, kept above 0 so that its root can be differentiated."""
    return jnp.maximum(variance, jnp.finfo(variance.dtype).tiny)
