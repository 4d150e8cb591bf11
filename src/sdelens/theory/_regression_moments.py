r"""Moments of the gradients of mini-batches of linear regression for a normal x ~ N(μ, S)."""

import abc
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.noise.regression import (
    RegressionLaw,
    ResamplingLaw,
    StreamingLaw,
    cumulants_of_batch,
    sign_of_batch,
    sign_of_resampled,
)
from sdelens.noise.sign import sign_covariance
from sdelens.theory._moments import (
    LinearGradient,
    MixedSigns,
    SignMoments,
    congruent,
    diagonal,
    normal_signs,
    rows,
    with_diagonal,
)

__all__ = ["ResamplingGradient", "StreamingGradient"]

_HERMITE = np.polynomial.hermite_e.hermegauss(10)
_LARGE_BATCH = 128


class _RegressionGradient(LinearGradient):
    """The mean gradient of a mini-batch of linear regression."""

    noise: RegressionLaw

    @abc.abstractmethod
    def mean_sign(self, mean: Array, covariance: Array, product: Array) -> tuple[Array, Array]:
        """E sign(g) and its Jacobian, as in `SignMoments`."""

    def square_moments(self, mean: Array, grad: Array, variance: Array, noise: Array) -> tuple[Array, Array]:
        """As in `LinearGradient`, with the cumulants of products of two normal numbers."""
        total = variance + noise
        third, fourth = cumulants_of_batch(self.noise.batch_size, grad, noise)
        return total + third / 2, fourth + 2 * total**2 + 4 * grad**2 * (total + third)

    def signs(self, mean: Array, covariance: Array) -> SignMoments:
        product = self.curvature * covariance if covariance.ndim == 1 else self.curvature @ covariance
        sign, jacobian = self.mean_sign(mean, covariance, product)
        # A feature that is always 0 has gradient 0, whose sign is 0.
        total = self.noise_covariance(mean, covariance, product) + self.gradient_covariance(product)
        own = jnp.where(diagonal(total) > 0, (1 - sign) * (1 + sign), 0)
        if product.ndim == 1:
            return SignMoments(sign, jacobian, own)
        return SignMoments(sign, jacobian, with_diagonal(self._coupled_signs(sign, total), own))

    def mixed_signs(
        self, x: Array, centre: Array, argument: Array, share: Any, noise: Array
    ) -> tuple[MixedSigns, Array]:
        """As in `LinearGradient`, for noise √G N(0, Σ) with BG ~ χ²(B).

        This is the law at ∇f = 0 of examples with normal features: given the residuals r, the mean of φr is normal with
        covariance K Σr²/B².
        """

        def squared(sign: Array) -> Array:
            return sign**2 if argument.ndim == 1 else jnp.outer(sign, sign)

        def add(total: list[Array], node: list[Array]) -> tuple[list[Array], None]:
            scale, weight = node
            one = normal_signs(centre, argument + share**2 * scale * noise)
            parts = [one.mean, one.slope, one.covariance + squared(one.mean), share * scale * rows(one.slope, noise)]
            return [a + weight * b for a, b in zip(total, parts, strict=True)], None

        none = [jnp.zeros_like(a) for a in (centre, centre, argument, argument)]
        rule = [jnp.asarray(a, centre.dtype) for a in _chi_square(self.noise.batch_size)]
        (sign, slope, second, fresh), _ = lax.scan(add, none, rule)
        return MixedSigns(sign, slope, second - squared(sign)), fresh

    def _coupled_signs(self, sign: Array, total: Array) -> Array:
        """Cov sign(g) off the diagonal by a normal copula, which is exact at ∇f = 0 and for large batches."""
        inverse = _inverse_root(diagonal(total))
        limit = 1 - 4 * jnp.finfo(sign.dtype).eps
        standard = math.sqrt(2) * lax.erf_inv(jnp.clip(sign, -limit, limit))
        return sign_covariance(jnp.clip(congruent(inverse, total), -1, 1), standard)


class StreamingGradient(_RegressionGradient):
    """The mean gradient of fresh examples."""

    noise: StreamingLaw

    def noise_covariance(self, mean: Array, covariance: Array, product: Array) -> Array:
        grad, tau2 = self.gradient(mean), self._tau2(mean, covariance)
        square = grad**2 if product.ndim == 1 else jnp.outer(grad, grad)
        return (tau2 * self.curvature + self.gradient_covariance(product) + square) / self.noise.batch_size

    def mean_sign(self, mean: Array, covariance: Array, product: Array) -> tuple[Array, Array]:
        grad, variance = self.gradient(mean), self.gradient_variance(product)
        tau2 = jnp.maximum(self._tau2(mean, covariance), jnp.finfo(mean.dtype).tiny)
        single = diagonal(self.curvature) * tau2

        def both(g: Array, x: Array) -> tuple[Array, Array]:
            column = single[:, None] if g.ndim == 2 else single
            g = jnp.clip(g, -0.9999 * jnp.sqrt(column), 0.9999 * jnp.sqrt(column))  # |c| < 1 by Cauchy-Schwarz
            return jax.jvp(lambda g: sign_of_batch(self.noise.batch_size, g, column), (g,), (jnp.ones_like(g),))

        sign, slope = self.over_gradient(both, grad, variance, mean)
        # c = ∂f/(τ√K): the second term is the effect of x through τ.
        if product.ndim == 1:
            return sign, slope * (self.curvature - grad**2 / tau2)
        return sign, rows(slope, self.curvature - jnp.outer(grad, grad) / tau2)

    def _coupled_signs(self, sign: Array, total: Array) -> Array:
        root = self.noise.sign_root  # for B = 1 a root of E sign(g) sign(g)ᵀ, which does not depend on x
        if self.noise.batch_size > 1 or root is None:
            return super()._coupled_signs(sign, total)
        return jnp.matmul(root, root, precision="highest") - jnp.outer(sign, sign)

    def _tau2(self, mean: Array, covariance: Array) -> Array:
        """Mean over x of the variance of one example's residual, (x − w)ᵀK(x − w) + s²."""
        return 2 * self.loss(mean, covariance)[0]


class ResamplingGradient(_RegressionGradient):
    """The mean gradient of examples drawn with replacement from a data set."""

    noise: ResamplingLaw

    def noise_covariance(self, mean: Array, covariance: Array, product: Array) -> Array:
        features, (centre, spread) = self._features, self._residual_moments(mean, covariance)
        second = jnp.matmul(features.T * (centre**2 + spread), features, precision="highest")
        grad = self.gradient(mean)
        total = second / features.shape[0] - jnp.outer(grad, grad) - self.gradient_covariance(product)
        return with_diagonal(total, jnp.maximum(diagonal(total), 0)) / self.noise.batch_size

    def mean_sign(self, mean: Array, covariance: Array, product: Array) -> tuple[Array, Array]:
        """Exact for B = 1. For B > 1, the gradients of the examples are treated as independent and normal given ∂f.

        The average over ∂f is then by Gauss-Hermite quadrature, and the Jacobian contains what follows from
        Cov(sign(gᵢ), ∂ᵢf).
        """
        features, batch = self._features, self.noise.batch_size
        centre, spread = self._residual_moments(mean, covariance)
        values, variances = features * centre[:, None], features**2 * spread[:, None]
        if batch == 1:

            def total(values: Array) -> tuple[Array, Array]:
                sign = sign_of_resampled(values, variances, 1)
                return sign.sum(), sign

            (_, sign), weights = jax.value_and_grad(total, has_aux=True)(values)
            return sign, jnp.matmul((weights * features).T, features, precision="highest")
        together = features * jnp.matmul(features, product.T, precision="highest")  # Cov(example's gradient, ∂f)
        inverse = _inverse_root(self.gradient_variance(product))
        shift = together * inverse
        rest = jnp.maximum(variances - shift**2, 0)

        def add(moments: tuple[Array, Array], node: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            sign = sign_of_resampled(values + node[0] * shift, rest, batch)
            return (moments[0] + node[1] * sign, moments[1] + node[1] * node[0] * sign), None

        rule = (jnp.asarray(_HERMITE[0], mean.dtype), jnp.asarray(_HERMITE[1] / _HERMITE[1].sum(), mean.dtype))
        (sign, tilt), _ = lax.scan(add, (jnp.zeros_like(mean), jnp.zeros_like(mean)), rule)
        return sign, rows(tilt * inverse, self.curvature)

    @property
    def _features(self) -> Array:
        assert self.noise.problem.features is not None
        return self.noise.problem.features

    def _residual_moments(self, mean: Array, covariance: Array) -> tuple[Array, Array]:
        """Mean and variance of the residual of every example, each of shape (n,)."""
        features, labels = self._features, self.noise.problem.labels
        assert labels is not None
        product = jnp.matmul(features, covariance, precision="highest")
        return jnp.matmul(features, mean, precision="highest") - labels, jnp.sum(product * features, axis=1)


@functools.cache
def _chi_square(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a quadrature over G with BG ~ χ²(B), by Gauss-Laguerre's rule or, for large B, Hermite's."""
    if batch > _LARGE_BATCH:
        return 1 + np.sqrt(2 / batch) * _HERMITE[0], _HERMITE[1] / _HERMITE[1].sum()
    from scipy.special import roots_genlaguerre

    nodes, weights = roots_genlaguerre(len(_HERMITE[0]), batch / 2 - 1)
    return 2 * nodes / batch, weights / weights.sum()


def _inverse_root(variance: Array) -> Array:
    """1/√v, and 0 for a variance of 0."""
    return jnp.where(variance > 0, 1 / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
