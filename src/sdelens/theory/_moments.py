r"""Expectations of a linear gradient and its noise for a normal x ~ N(μ, S), which the Gaussian closure needs.

The gradient is ∇f = H(x − x*), on `Quadratic` and `LinearRegression`. A covariance is stored as its diagonal, shape
(d,), if the coordinates are not coupled, and as a matrix otherwise; the algebraic functions below accept both, so every
formula is written only once.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.matrix import times
from sdelens.noise import AbstractNoise, LaplaceNoise, StudentTNoise, SumNoise, UniformNoise
from sdelens.noise.distributed import RandomKNoise
from sdelens.noise.gaussian import VaryingMatrix
from sdelens.noise.regression import RegressionNoise, ResamplingNoise, StreamingNoise, sign_of_batch, sign_of_resampled
from sdelens.noise.sign import sign_covariance
from sdelens.noise.symmetric import ScaledNoise
from sdelens.problems import AbstractProblem, LinearRegression, Quadratic

__all__ = [
    "MAX_DENSE",
    "LinearGradient",
    "SignMoments",
    "congruent",
    "diagonal",
    "excess_kurtosis",
    "linear_gradient",
    "rows",
    "transpose",
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
        noise: law of the noise, bound to the problem.
    """

    curvature: Array
    minimiser: Array
    infimum: float
    noise: AbstractNoise

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
        noise = self.noise
        if isinstance(noise, RandomKNoise):
            own = LinearGradient(self.curvature, self.minimiser, self.infimum, noise.noise)
            return self._of_random_k(
                noise, own.noise_covariance(mean, covariance, product), self.gradient(mean), product
            )
        if isinstance(noise, ResamplingNoise):
            weights = self._residual_moments(mean, covariance)
            features = noise.problem.features
            assert features is not None
            second = jnp.matmul(features.T * (weights[0] ** 2 + weights[1]), features, precision="highest")
            grad = self.gradient(mean)
            total = second / features.shape[0] - jnp.outer(grad, grad) - self.gradient_covariance(product)
            return _with_diagonal(total, jnp.maximum(diagonal(total), 0)) / noise.batch_size
        if isinstance(noise, StreamingNoise):
            grad, tau2 = self.gradient(mean), self._tau2(mean, covariance)
            square = grad**2 if product.ndim == 1 else jnp.outer(grad, grad)
            return (tau2 * self.curvature + self.gradient_covariance(product) + square) / noise.batch_size
        if isinstance(noise, VaryingMatrix):
            return noise.function(mean)
        matrix = getattr(noise, "matrix", None)
        if matrix is not None:
            return matrix
        variance = jnp.broadcast_to(noise.variance(mean), mean.shape).astype(mean.dtype)
        return variance if covariance.ndim == 1 else jnp.diag(variance)

    def _of_random_k(self, noise: RandomKNoise, own: Array, grad: Array, product: Array) -> Array:
        """E Σ(x) for N workers that send k coordinates: linear in Σ and E ∇f∇fᵀ = u uᵀ + HSH."""
        spread = self.gradient_covariance(product)
        second = spread + (grad**2 if spread.ndim == 1 else jnp.outer(grad, grad))
        if spread.ndim == 1:
            return ((1 + noise.omega) * own + noise.omega * second) / noise.workers
        less = noise.shrinkage
        total = (1 - less) * own - less * second
        return _with_diagonal(total, (1 + noise.omega) * diagonal(own) + noise.omega * diagonal(second)) / noise.workers

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
        if not isinstance(self.noise, RegressionNoise):
            return total, excess_kurtosis(self.noise, mean) * noise**2 + 2 * total**2 + 4 * grad**2 * total
        # The product of two standard normal numbers with correlation c has third and fourth cumulants 6c + 2c³ and
        # 6(1 + 6c² + c⁴).
        batch = self.noise.batch_size
        single = jnp.maximum(noise * batch - grad**2, 0)
        square = jnp.clip(grad**2 / jnp.maximum(single, jnp.finfo(grad.dtype).tiny), 0, 1)
        third = (6 + 2 * square) * single / batch**2  # k₃/u
        fourth = 6 * (1 + 6 * square + square**2) * single**2 / batch**3
        return total + third / 2, fourth + 2 * total**2 + 4 * grad**2 * (total + third)

    def signs(self, mean: Array, covariance: Array) -> SignMoments:
        """Moments of sign(g)."""
        grad, product = self.gradient(mean), times(self.curvature, covariance)
        if isinstance(self.noise, RegressionNoise):
            return self._regression_signs(grad, mean, covariance, product)
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
        sign, slope = self._over_gradient(
            lambda g, x: (self.noise.mean_sign(g, x), 2 * self.noise.density(g, x)), grad, spread, mean
        )
        if isinstance(self.noise, ScaledNoise):
            sd = jnp.sqrt(jnp.maximum(spread, 0))
            wide = sd > self.noise.scale
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
        return SignMoments(sign, self._jacobian(slope), _with_diagonal(coupled, own))

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

    def _regression_signs(self, grad: Array, mean: Array, covariance: Array, product: Array) -> SignMoments:
        noise = self.noise
        assert isinstance(noise, RegressionNoise)
        variance = self.gradient_variance(product)
        if isinstance(noise, ResamplingNoise):
            sign, jacobian = self._resampled_signs(noise, mean, covariance, product)
        else:
            tau2 = jnp.maximum(self._tau2(mean, covariance), jnp.finfo(mean.dtype).tiny)
            single = diagonal(self.curvature) * tau2

            def both(g: Array, x: Array) -> tuple[Array, Array]:
                column = single[:, None] if g.ndim == 2 else single
                g = jnp.clip(g, -0.9999 * jnp.sqrt(column), 0.9999 * jnp.sqrt(column))  # |c| < 1 by Cauchy-Schwarz
                return jax.jvp(lambda g: sign_of_batch(noise.batch_size, g, column), (g,), (jnp.ones_like(g),))

            sign, slope = self._over_gradient(both, grad, variance, mean)
            # c = ∂f/(τ√K): the second term is the effect of x through τ.
            if product.ndim == 1:
                jacobian = slope * (self.curvature - grad**2 / tau2)
            else:
                jacobian = rows(slope, self.curvature - jnp.outer(grad, grad) / tau2)
        # A feature that is always 0 has gradient 0, whose sign is 0.
        total = self.noise_covariance(mean, covariance, product) + self.gradient_covariance(product)
        alive = diagonal(total) > 0
        own = jnp.where(alive, (1 - sign) * (1 + sign), 0)
        if product.ndim == 1:
            return SignMoments(sign, jacobian, own)
        if noise.batch_size == 1 and isinstance(noise, StreamingNoise):
            root = noise.sign_root  # root of E sign(g) sign(g)ᵀ, which does not depend on x
            assert root is not None
            second = jnp.matmul(root, root, precision="highest")
            return SignMoments(sign, jacobian, _with_diagonal(second - jnp.outer(sign, sign), own))
        # Approximate the joint law by a normal copula, which is exact at ∇f = 0 and for large batches.
        inverse = jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, diagonal(total), 1)), 0)
        limit = 1 - 4 * jnp.finfo(sign.dtype).eps
        standard = math.sqrt(2) * lax.erf_inv(jnp.clip(sign, -limit, limit))
        coupled = sign_covariance(jnp.clip(congruent(inverse, total), -1, 1), standard)
        return SignMoments(sign, jacobian, _with_diagonal(coupled, own))

    def _resampled_signs(
        self, noise: ResamplingNoise, mean: Array, covariance: Array, product: Array
    ) -> tuple[Array, Array]:
        """E sign(g) and its Jacobian for mini-batches drawn from a data set: exact for B = 1.

        For B > 1, ∇f shifts the gradients of all examples together: E sign is approximated by an error function of ∂f
        alone, with the value and slope computed at μ; the average over a normal ∂f then has a closed form.
        """
        features = noise.problem.features
        assert features is not None
        centre, spread = self._residual_moments(mean, covariance)
        values, variances = features * centre[:, None], features**2 * spread[:, None]
        variance = self.gradient_variance(product)
        together = features * jnp.matmul(features, product.T, precision="highest")  # Cov(example's gradient, ∂f)
        known = variance > 0
        safe = jnp.where(known, variance, 1)
        if noise.batch_size > 1:
            variances = jnp.maximum(variances - together**2 / safe, 0)

        def total(values: Array) -> tuple[Array, Array]:
            sign = sign_of_resampled(values, variances, noise.batch_size)
            return sign.sum(), sign

        (_, sign), weights = jax.value_and_grad(total, has_aux=True)(values)
        if noise.batch_size == 1:
            return sign, jnp.matmul((weights * features).T, features, precision="highest")
        tiny = jnp.finfo(sign.dtype).tiny
        slope = jnp.maximum((weights * jnp.where(known, together / safe, 1)).sum(axis=0), 1e-6 / jnp.sqrt(safe))
        limit = 1 - 4 * jnp.finfo(sign.dtype).eps
        centre = lax.erf_inv(jnp.clip(sign, -limit, limit))
        width = math.sqrt(2 / math.pi) * jnp.exp(-(centre**2)) / jnp.maximum(slope, tiny)
        spread = jnp.sqrt(width**2 + variance)
        smoothed = centre * width / spread
        return lax.erf(smoothed), self._jacobian(math.sqrt(2 / math.pi) * jnp.exp(-(smoothed**2)) / spread)

    def _jacobian(self, slope: Array) -> Array:
        return rows(slope, self.curvature)

    def _over_gradient(self, function: Any, grad: Array, variance: Array, x: Array) -> tuple[Array, Array]:
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

    def _tau2(self, mean: Array, covariance: Array) -> Array:
        """Mean over x of the variance of one example's residual, (x − w)ᵀK(x − w) + s²."""
        return 2 * self.loss(mean, covariance)[0]

    def _residual_moments(self, mean: Array, covariance: Array) -> tuple[Array, Array]:
        """Mean and variance of the residual of every example, each of shape (n,)."""
        problem = self.noise.problem  # type: ignore[attr-defined]
        centre = jnp.matmul(problem.features, mean, precision="highest") - problem.labels
        product = jnp.matmul(problem.features, covariance, precision="highest")
        return centre, jnp.sum(product * problem.features, axis=1)


def excess_kurtosis(noise: AbstractNoise, x: Array) -> Any:
    """Excess kurtosis of a coordinate of independent or normal noise; infinite if it does not exist or is not known."""
    if noise.normal:
        return 0.0
    if isinstance(noise, LaplaceNoise):
        return 3.0
    if isinstance(noise, UniformNoise):
        return -1.2
    if isinstance(noise, StudentTNoise):
        return jnp.where(noise.df > 4, 6 / jnp.where(noise.df > 4, noise.df - 4, 1), jnp.inf)
    if isinstance(noise, SumNoise):
        parts = [(excess_kurtosis(term, x), term.variance(x)) for term in noise.terms]
        return sum(k * v**2 for k, v in parts) / sum(v for _, v in parts) ** 2
    return jnp.inf


def linear_gradient(problem: AbstractProblem, noise: AbstractNoise) -> LinearGradient:
    """The problem's gradient with its noise, whose law must be bound to the problem.

    Raises:
        TypeError: if the gradient is not linear.
        ValueError: if coordinates are coupled and there are more than 2000 of them.
    """
    if not isinstance(problem, Quadratic | LinearRegression):
        raise TypeError(
            f"problem: got {type(problem).__name__}; the theory needs a quadratic loss: sl.Quadratic or "
            "sl.LinearRegression. Expand yours about its minimum: sl.Quadratic(hessian, start)."
        )
    curvature = problem.curvature
    own = noise.noise if isinstance(noise, RandomKNoise) else noise
    matrix = getattr(own, "matrix", None) is not None or isinstance(own, VaryingMatrix)
    if curvature.ndim == 1 and matrix:
        curvature = jnp.diag(curvature) if problem.dim <= MAX_DENSE else jnp.zeros((0, 0), curvature.dtype)
    if curvature.ndim == 2 and problem.dim > MAX_DENSE:
        raise ValueError(
            f"problem: has {problem.dim} coupled coordinates; the theory takes up to {MAX_DENSE}, and any number where "
            "curvature and noise are diagonal."
        )
    infimum = 0.0 if isinstance(problem, Quadratic) else problem.infimum
    return LinearGradient(curvature, problem.minimiser, infimum, noise)


def _with_diagonal(matrix: Array, values: Array) -> Array:
    index = jnp.arange(values.shape[0])
    return matrix.at[index, index].set(values)
