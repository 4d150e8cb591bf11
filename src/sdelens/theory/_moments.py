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
from sdelens.noise.sign import sign_covariance

__all__ = [
    "LinearGradient",
    "RandomKGradient",
    "SignMoments",
    "congruent",
    "diagonal",
    "rows",
    "transpose",
    "with_diagonal",
]

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
    return rows(factor, transpose(rows(factor, covariance)))


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
        """E Σ(x); for noise whose covariance is given as a function of x, Σ(μ) instead."""
        if self.noise.has_covariance:
            return self.noise.covariance(mean)
        variance = jnp.broadcast_to(self.noise.variance(mean), mean.shape).astype(mean.dtype)
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
        total = variance + noise
        return total, self.noise.excess_kurtosis(mean) * noise**2 + 2 * total**2 + 4 * grad**2 * total

    def signs(self, mean: Array, covariance: Array) -> SignMoments:
        """Moments of sign(g)."""
        grad, product = self.gradient(mean), times(self.curvature, covariance)
        if self.noise.normal:
            return self._normal_signs(grad, self.noise_covariance(mean, covariance, product), product)
        return self._symmetric_signs(grad, mean, product)

    def _normal_signs(self, grad: Array, noise: Array, product: Array) -> SignMoments:
        """Moments of sign(g) for normal noise: g itself is normal, and everything is exact."""
        total = noise + self.gradient_covariance(product)
        sd = jnp.sqrt(diagonal(total))
        standard = grad / sd
        mean = lax.erf(standard / math.sqrt(2))
        slope = math.sqrt(2 / math.pi) * jnp.exp(-0.5 * standard**2) / sd
        if product.ndim == 1:
            covariance = (1 - mean) * (1 + mean)
        else:
            correlation = jnp.clip(total / jnp.outer(sd, sd), -1, 1)
            covariance = sign_covariance(correlation, standard)
        return SignMoments(mean, self._jacobian(slope), covariance)

    def _symmetric_signs(self, grad: Array, mean: Array, product: Array) -> SignMoments:
        """Moments for other independent noise: Gauss-Hermite quadrature over ∇f or, if ∇f is wider, over the noise."""
        spread = self.gradient_variance(product)
        sign, slope = self.over_gradient(
            lambda g, x: (self.noise.mean_sign(g, x), 2 * self.noise.density(g, x)), grad, spread, mean
        )
        if self.noise.has_quadrature:
            sd = jnp.sqrt(jnp.maximum(spread, 0))
            wide = sd > self.noise.scales(mean)
            other = lax.cond(
                wide.any(),
                lambda: self._over_noise(grad, jnp.where(wide, sd, 1), mean),
                lambda: (jnp.zeros_like(grad), jnp.zeros_like(grad)),
            )
            sign, slope = (jnp.where(wide, b, a) for a, b in zip((sign, slope), other, strict=True))
        own = (1 - sign) * (1 + sign)
        if product.ndim == 1:
            return SignMoments(sign, self._jacobian(slope), own)
        coupled = congruent(slope, self.gradient_covariance(product))
        return SignMoments(sign, self._jacobian(slope), with_diagonal(coupled, own))

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

    def _jacobian(self, slope: Array) -> Array:
        return rows(slope, self.curvature)

    def over_gradient(self, function: Any, grad: Array, variance: Array, x: Array) -> tuple[Array, Array]:
        """Expectations of two functions of ∇f, each of shape (d,), where every coordinate of ∇f is normal."""
        nodes, weights = (jnp.asarray(v, grad.dtype) for v in (_HERMITE[0], _HERMITE[1] / _HERMITE[1].sum()))
        sd = jnp.sqrt(jnp.maximum(variance, 0))
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


def with_diagonal(matrix: Array, values: Array) -> Array:
    index = jnp.arange(values.shape[0])
    return matrix.at[index, index].set(values)
