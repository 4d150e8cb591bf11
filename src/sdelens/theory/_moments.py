r"""Expectations of a linear gradient and its noise for a normal x ~ N(μ, S), which the Gaussian closure needs.

The gradient is ∇f = H(x − x*), on `Quadratic` and `LinearRegression`. A covariance is stored as its diagonal, shape
(d,), if the coordinates are not coupled, and as a matrix otherwise; the algebraic functions below accept both, so every
formula is written only once.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.matrix import times
from sdelens.noise import NoiseLaw
from sdelens.noise.distributed import RandomKLaw
from sdelens.noise.sign import lower_root, sign_covariance

__all__ = [
    "MAX_DENSE",
    "LinearGradient",
    "MixedSigns",
    "RandomKGradient",
    "SignMoments",
    "between",
    "congruent",
    "diagonal",
    "normal_signs",
    "root",
    "rows",
    "transpose",
    "with_diagonal",
]

MAX_DENSE = 2000
"""Largest dimension for which coordinates may be coupled."""

_HERMITE = np.polynomial.hermite_e.hermegauss(48)
_MANY = 4096


def rows(factor: Any, covariance: Any) -> Any:
    """diag(p) S."""
    return factor * covariance if covariance.ndim == 1 else factor[:, None] * covariance


def transpose(covariance: Any) -> Any:
    """Sᵀ."""
    return covariance if covariance.ndim == 1 else covariance.T


def diagonal(covariance: Any) -> Any:
    """Diagonal of S."""
    return covariance if covariance.ndim == 1 else covariance.diagonal()


def congruent(factor: Any, covariance: Any) -> Any:
    """diag(p) S diag(p)."""
    return between(factor, covariance, factor)


def between(left: Any, matrix: Any, right: Any) -> Any:
    """diag(p) S diag(q)."""
    return rows(left, transpose(rows(right, transpose(matrix))))


def root(values: Array) -> Array:
    """√v of v ≥ 0, with the derivative 0 where v = 0: there, variances are those of a start that has no spread."""
    some = values > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, values, 1)), 0)


class SignMoments(NamedTuple):
    """Moments of sign(g) for normal x.

    Attributes:
        mean: E sign(g), shape (d,).
        jacobian: J = E ∂E(sign(g) | x)/∂x, so that Cov(sign(g), x) = J S (Stein); its diagonal or a matrix.
        covariance: Cov sign(g), including the randomness of x; its diagonal or a matrix.
    """

    mean: Array
    jacobian: Array
    covariance: Array


class MixedSigns(NamedTuple):
    """Moments of s = sign(A + cZ) for a normal vector A and noise Z.

    Attributes:
        mean: E s, shape (d,).
        slope: E ∂E(s | A)/∂A, shape (d,); Cov(s, y) = diag(slope) Cov(A, y) for y jointly normal with A (Stein).
        covariance: Cov s; its diagonal or a matrix.
    """

    mean: Array
    slope: Array
    covariance: Array


class LinearGradient(eqx.Module):
    """The gradient ∇f = H(x − x*) with its noise.

    Attributes:
        curvature: H, shape (d,) or (d, d); the latter also if only the noise couples coordinates.
        minimiser: x*, shape (d,).
        infimum: f(x*).
        noise: law of the noise.
    """

    curvature: Array
    minimiser: Array
    infimum: float
    noise: NoiseLaw

    def gradient(self, mean: Array) -> Array:
        """E ∇f, shape (d,)."""
        return times(self.curvature, mean - self.minimiser)

    def gradient_covariance(self, product: Array) -> Array:
        """Cov ∇f = HSH, computed from `product` = H S."""
        return times(self.curvature, transpose(product))

    def gradient_variance(self, product: Array) -> Array:
        """Diagonal of HSH, shape (d,), computed from `product` = H S."""
        return self.curvature * product if product.ndim == 1 else jnp.sum(product * self.curvature, axis=1)

    def loss(self, mean: Array, covariance: Array) -> tuple[Array, Array]:
        """Mean and variance of f, exact for normal x."""
        off, grad, product = mean - self.minimiser, self.gradient(mean), times(self.curvature, covariance)
        expected = self.infimum + 0.5 * (off @ grad + jnp.sum(diagonal(product)))
        spread = covariance * grad**2 if covariance.ndim == 1 else grad * jnp.matmul(covariance, grad)
        return expected, 0.5 * jnp.sum(product * transpose(product)) + jnp.sum(spread)

    def noise_covariance(self, mean: Array, covariance: Array, product: Array) -> Array:
        """E Σ(x) ≈ Σ(μ) + ½ Σⱼ [Σ(μ + lⱼ) − 2Σ(μ) + Σ(μ − lⱼ)], where lⱼ are the columns of a root of S.

        It is exact if Σ is quadratic in x. For d > 2000 it is Σ(μ).
        """
        at = self._noise_at(mean, covariance)
        if self.noise.constant or mean.shape[0] > MAX_DENSE:
            return at

        def add(total: Array, column: Array) -> tuple[Array, None]:
            both = self._noise_at(mean + column, covariance) + self._noise_at(mean - column, covariance)
            return total + (0.5 * both - at), None

        columns = jnp.diag(root(covariance)) if covariance.ndim == 1 else lower_root(covariance)
        total = lax.scan(add, at, columns.T)[0]
        return jnp.maximum(total, 0) if total.ndim == 1 else with_diagonal(total, jnp.maximum(diagonal(total), 0))

    def _noise_at(self, x: Array, covariance: Array) -> Array:
        """Σ(x) in the form of `covariance`."""
        if self.noise.has_covariance:
            return self.noise.covariance(x)
        variance = jnp.broadcast_to(self.noise.variance(x), x.shape).astype(x.dtype)
        return variance if covariance.ndim == 1 else jnp.diag(variance)

    def square_moments(self, mean: Array, grad: Array, variance: Array, noise: Array) -> tuple[Array, Array]:
        """Cov(g, g²)/(2 E g) and Var g² of every coordinate, shape (d,); infinite if there is no fourth moment.

        With the cumulants T, k₃, k₄ of g these are T + k₃/(2u) and k₄ + 2T² + 4u²T + 4uk₃.

        Args:
            mean: E x.
            grad: u = E ∇f.
            variance: variance of ∇f.
            noise: variance of the noise.
        """
        total, kurtosis = variance + noise, jnp.asarray(self.noise.excess_kurtosis(mean))
        known = jnp.isfinite(kurtosis)
        fourth = jnp.where(known, kurtosis, 0) * noise**2 + 2 * total**2 + 4 * grad**2 * total
        return total, jnp.where(known, fourth, jnp.inf)

    def signs(self, mean: Array, covariance: Array) -> SignMoments:
        """Moments of sign(g)."""
        product = times(self.curvature, covariance)
        argument, noise = self.gradient_covariance(product), self.noise_covariance(mean, covariance, product)
        found = self._signs_of(mean, self.gradient(mean), argument, 1.0, noise)
        return SignMoments(found.mean, rows(found.slope, self.curvature), found.covariance)

    def mixed_signs(
        self, x: Array, centre: Array, argument: Array, share: Any, noise: Array
    ) -> tuple[MixedSigns, Array]:
        """Moments of sign(A + cZ) for A ~ N(a, C), and Cov(sign, Z).

        Args:
            x: E x, at which the law of the noise is taken.
            centre: a, shape (d,).
            argument: C.
            share: c > 0.
            noise: E Σ.
        """
        found = self._signs_of(x, centre, argument, share, noise)
        if self.noise.normal or not self.noise.has_quadrature:
            return found, share * rows(found.slope, noise)
        sd = root(diagonal(argument))
        nodes, weights = self.noise.quadrature(x)
        tiny = jnp.finfo(sd.dtype).tiny
        sign = lax.erf((centre + share * nodes) / (math.sqrt(2) * jnp.maximum(sd, tiny)))
        fresh = weights @ (nodes * sign)
        return found, fresh if noise.ndim == 1 else jnp.diag(fresh)

    def _signs_of(self, x: Array, centre: Array, argument: Array, share: Any, noise: Array) -> MixedSigns:
        """Exact for normal noise; other noise is independent, and the sign is averaged over A and Z by quadrature."""
        if self.noise.normal or not self.noise.independent:
            return normal_signs(centre, argument + share**2 * noise)
        scaled = diagonal(argument) / share**2
        sign, slope = self._symmetric_signs(centre / share, scaled, x)
        own = (1 - sign) * (1 + sign)
        slope = slope / share
        if argument.ndim == 1:
            return MixedSigns(sign, slope, own)
        return MixedSigns(sign, slope, with_diagonal(congruent(slope, argument), own))

    def _symmetric_signs(self, grad: Array, spread: Array, x: Array) -> tuple[Array, Array]:
        """E sign(A + Z) and its slope, by Gauss-Hermite quadrature over A or, if A is wider, over the noise."""
        sign, slope = self.over_gradient(
            lambda g, x: (self.noise.mean_sign(g, x), 2 * self.noise.density(g, x)), grad, spread, x
        )
        if not self.noise.has_quadrature:
            return sign, slope
        sd = root(spread)
        wide = sd > self.noise.scales(x)
        other = lax.cond(
            wide.any(),
            lambda: self._over_noise(grad, jnp.where(wide, sd, 1), x),
            lambda: (jnp.zeros_like(grad), jnp.zeros_like(grad)),
        )
        return jnp.where(wide, other[0], sign), jnp.where(wide, other[1], slope)

    def _over_noise(self, grad: Array, sd: Array, x: Array) -> tuple[Array, Array]:
        """E sign and its slope by quadrature over the noise: given Z, E sign(∇f + Z) is an error function."""
        nodes, weights = self.noise.quadrature(x)

        def add(total: tuple[Array, Array], node: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            standard = (grad + node[0]) / sd
            sign = lax.erf(standard / math.sqrt(2))
            slope = math.sqrt(2 / math.pi) * jnp.exp(-0.5 * standard**2) / sd
            return (total[0] + node[1] * sign, total[1] + node[1] * slope), None

        zero = jnp.zeros_like(grad)
        return lax.scan(add, (zero, zero), (nodes, weights))[0]

    def over_gradient(self, function: Any, grad: Array, variance: Array, x: Array) -> tuple[Array, Array]:
        """Expectations of two functions of ∇f, each of shape (d,), where every coordinate of ∇f is normal."""
        nodes, weights = (jnp.asarray(v, grad.dtype) for v in (_HERMITE[0], _HERMITE[1] / _HERMITE[1].sum()))
        sd = root(variance)
        if grad.shape[0] <= _MANY:
            first, second = function(grad[:, None] + sd[:, None] * nodes, x[:, None])
            return first @ weights, second @ weights

        def add(total: tuple[Array, Array], node: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            first, second = function(grad + sd * node[0], x)
            return (total[0] + node[1] * first, total[1] + node[1] * second), None

        zero = jnp.zeros_like(grad)
        return lax.scan(add, (zero, zero), (nodes, weights))[0]


class RandomKGradient(LinearGradient):
    """The gradient of several workers that each send k of its coordinates."""

    noise: RandomKLaw

    def noise_covariance(self, mean: Array, covariance: Array, product: Array) -> Array:
        """E Σ(x): linear in a worker's Σ and E ∇f∇fᵀ = u uᵀ + HSH."""
        law, grad = self.noise, self.gradient(mean)
        one = LinearGradient(self.curvature, self.minimiser, self.infimum, law.noise)
        own = one.noise_covariance(mean, covariance, product)
        spread = self.gradient_covariance(product)
        second = spread + (grad**2 if spread.ndim == 1 else jnp.outer(grad, grad))
        if spread.ndim == 1:
            return ((1 + law.omega) * own + law.omega * second) / law.workers
        less = law.shrinkage
        total = (1 - less) * own - less * second
        return with_diagonal(total, (1 + law.omega) * diagonal(own) + law.omega * diagonal(second)) / law.workers


def normal_signs(mean: Array, covariance: Array) -> MixedSigns:
    """Moments of the signs of a normal vector."""
    sd = jnp.sqrt(diagonal(covariance))
    standard = mean / sd
    sign = lax.erf(standard / math.sqrt(2))
    slope = math.sqrt(2 / math.pi) * jnp.exp(-0.5 * standard**2) / sd
    if covariance.ndim == 1:
        return MixedSigns(sign, slope, (1 - sign) * (1 + sign))
    correlation = jnp.clip(covariance / jnp.outer(sd, sd), -1, 1)
    return MixedSigns(sign, slope, sign_covariance(correlation, standard))


def with_diagonal(matrix: Array, values: Array) -> Array:
    index = jnp.arange(values.shape[0])
    return matrix.at[index, index].set(values)
