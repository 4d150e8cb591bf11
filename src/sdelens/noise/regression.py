r"""Mini-batch noise of linear regression with a Gaussian design, with its exact law.

With e = x − w and one example's residual r = φ·e − sξ of variance τ² = eᵀKe + s², the gradient of a batch is
g = (1/B) Σ φ_b r_b. Given the residuals, φ_b is normal with mean (Ke/τ²) r_b, so with S = Σ r_b² ~ τ²χ²_B

    g | S ~ N(Ke S/(Bτ²), (K − KeeᵀK/τ²) S/B²):

a draw takes d + B + 1 normal numbers, not dB. The covariance is (τ²K + KeeᵀK)/B. For one coordinate, a sum of B
products of two normal numbers of correlation c = ∂f/(τ√Kᵢᵢ) is a difference of two χ²_B, so its sign follows from F's
law, which is Student's:

    E sign(gᵢ) = 2F_B(√B c/√(1 − c²)) − 1,   F_B the distribution function of t with B degrees of freedom:

for the sign, B examples act like Student t noise with ν = B, and one example like Cauchy noise.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core import check
from sdelens.core.matrix import symmetric_root, times
from sdelens.core.random import Stream
from sdelens.core.tree import column, sum_coordinates
from sdelens.noise._base import BatchLaw, centred_square
from sdelens.noise.student_t import StudentTNoise
from sdelens.problems import LinearRegression

__all__ = [
    "RegressionLaw",
    "ResamplingLaw",
    "StreamingLaw",
    "cumulants_of_batch",
    "sign_of_batch",
    "sign_of_resampled",
]


_LEGENDRE = np.polynomial.legendre.leggauss(64)
_UNIT_RULE = ((_LEGENDRE[0] + 1) / 2, _LEGENDRE[1] / 2)


class RegressionLaw(BatchLaw):
    """Base of mini-batch noise of linear regression, bound to the problem.

    Attributes:
        problem: the linear regression.
        sign_root: root of (2/π) arcsin of the noise's correlations at the minimum, the signs' covariance there; None
            where its coordinates are independent.
        sign_inverse: its inverse, or None in the same case.
    """

    problem: LinearRegression
    batch_size: int = eqx.field(static=True)
    sign_root: Array | None
    sign_inverse: Array | None

    def __init__(self, problem: LinearRegression, batch_size: int) -> None:
        if check.is_traced(problem.curvature):
            raise TypeError(
                "problem: the law of its mini-batches cannot be derived from a curvature that JAX traces (jit, grad, "
                "vmap); other numbers of the problem, of the noise and of the optimizer may be traced."
            )
        self.problem, self.batch_size = problem, batch_size
        self.sign_root = self.sign_inverse = None
        if problem.curvature.ndim == 2:
            matrix = self._noise_at_minimum()
            sd = np.sqrt(np.maximum(np.diag(matrix), np.finfo(np.float64).tiny))
            signs = (2 / np.pi) * np.arcsin(np.clip(matrix / np.outer(sd, sd), -1, 1))
            values, vectors = np.linalg.eigh(signs)
            size = np.sqrt(np.maximum(values, 1e-12))
            self.sign_root = jnp.asarray((vectors * size) @ vectors.T, problem.start.dtype)
            self.sign_inverse = jnp.asarray((vectors / size) @ vectors.T, problem.start.dtype)

    def describe(self) -> dict[str, Any]:
        return {"name": "minibatch", "batch_size": self.batch_size}

    def _noise_at_minimum(self) -> np.ndarray:
        """Covariance of the noise at the minimum, up to a factor."""
        return np.asarray(self.problem.curvature, np.float64)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        e = self.mean_sign(grad, x)
        return jnp.sqrt(jnp.maximum((1 - e) * (1 + e), jnp.finfo(e.dtype).tiny)) * self._rooted(dW)

    def _rooted(self, dW: Array) -> Array:
        return dW if self.sign_root is None else jnp.matmul(self.sign_root, dW, precision="highest")


class StreamingLaw(RegressionLaw):
    """Noise of fresh examples at every step."""

    root: Array

    def __init__(self, problem: LinearRegression, batch_size: int) -> None:
        super().__init__(problem, batch_size)
        root = symmetric_root(np.asarray(problem.design_covariance, np.float64))
        self.root = jnp.asarray(root, problem.start.dtype)

    def sample(self, x: Array, stream: Stream) -> Array:
        off, dtype = x - column(self.problem.solution, x), x.dtype
        grad, tau2 = self._grad_and_tau2(x)
        safe = jnp.maximum(tau2, jnp.finfo(dtype).tiny)
        chi2 = _sum_of_squares(stream, self.batch_size, dtype)
        features = times(self.root, stream.normal(x.shape[0], dtype))
        label = stream.normal(1, dtype, lane=1)[0]
        residual = sum_coordinates(features * off) - self.problem.label_noise * label
        # Features given a residual of 0, plus the part along Ke, which depends on the squared residuals.
        across = features - grad * (residual / safe)
        size = jnp.sqrt(tau2 * chi2) / self.batch_size
        return grad * (chi2 / self.batch_size - 1) + size * across

    def variance(self, x: Array) -> Array:
        grad, tau2 = self._grad_and_tau2(x)
        return (tau2 * column(_diagonal(self.problem.design_covariance), x) + grad**2) / self.batch_size

    def mean_sign(self, grad: Array, x: Array) -> Array:
        r"""2F_B(√B c/√(1 − c²)) − 1, c = ∂f/(τ√K)."""
        single = self._grad_and_tau2(x)[1] * column(_diagonal(self.problem.design_covariance), x)
        return sign_of_batch(self.batch_size, grad, single)

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return (dim + 1,)

    def apply_root(self, x: Array, dW: Array) -> Array:
        """√(τ²/B) K^{1/2} dW₁ + Ke dW₂/√B, whose covariance is (τ²K + KeeᵀK)/B."""
        grad, tau2 = self._grad_and_tau2(x)
        return (jnp.sqrt(tau2) * times(self.root, dW[:-1]) + grad * dW[-1]) / math.sqrt(self.batch_size)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        if self.batch_size > 1:
            return super().apply_sign_root(grad, x, dW)
        # The signs' covariance is A − eeᵀ, of which R(I − c wwᵀ) with RRᵀ = A and w = R⁻¹e is a root.
        e = self.mean_sign(grad, x)
        w = e if self.sign_inverse is None else jnp.matmul(self.sign_inverse, e, precision="highest")
        square = jnp.clip(sum_coordinates(w * w), 0, 1)
        along = sum_coordinates(w * dW) / (1 + jnp.sqrt(1 - square))  # c|w|² = 1 − √(1 − |w|²)
        return self._rooted(dW - w * along)

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        """Noise of g and of g², with the third and fourth cumulants k₃ and k₄ of g.

        (2∇f + k₃/σ²) Z + √(1 + (k₄ − k₃²/σ²)/(2σ⁴)) (Z∘Z/dt − σ²) √dt, where σ² = diag Σ.
        """
        variance = jnp.maximum(self.variance(x), jnp.finfo(x.dtype).tiny)
        third, fourth = cumulants_of_batch(self.batch_size, grad, variance)
        root = self.apply_root(x, dW)
        slope = third * grad / variance
        size = jnp.sqrt(jnp.maximum(1 + (fourth / variance - slope**2) / (2 * variance), 0))
        return root, (2 * grad + slope) * root + size * centred_square(root, variance, dt)

    def _grad_and_tau2(self, x: Array) -> tuple[Array, Array]:
        loss, grad = self.problem.evaluate(x)
        return grad, 2 * loss


class ResamplingLaw(RegressionLaw):
    """Noise of examples drawn with replacement from the problem's sample."""

    def __init__(self, problem: LinearRegression, batch_size: int) -> None:
        super().__init__(problem, batch_size)

    def sample(self, x: Array, stream: Stream) -> Array:
        features, labels = self.problem.features, self.problem.labels
        assert features is not None
        assert labels is not None
        chosen = stream.integers(self.batch_size, features.shape[0])
        columns = features.T

        def add(b: Array, total: Array) -> Array:
            index = lax.dynamic_index_in_dim(chosen, b, keepdims=False)
            drawn = columns[:, index]
            return total + drawn * (sum_coordinates(drawn * x) - labels[index])

        total = lax.fori_loop(0, self.batch_size, add, jnp.zeros_like(x))
        return total / self.batch_size - self.problem.evaluate(x)[1]

    def _noise_at_minimum(self) -> np.ndarray:
        features = np.asarray(self.problem.features, np.float64)
        residuals = features @ np.asarray(self.problem.minimiser, np.float64) - np.asarray(self.problem.labels)
        if np.abs(residuals).max() < 1e-5:  # the minimum interpolates the sample and has no noise
            return super()._noise_at_minimum()
        return (features.T * residuals**2) @ features

    def variance(self, x: Array) -> Array:
        grad = self.problem.evaluate(x)[1]
        return jnp.maximum(self._second_moment(x) - grad**2, 0) / self.batch_size

    def mean_sign(self, grad: Array, x: Array) -> Array:
        """E sign of the mean of B examples' gradients drawn with replacement."""

        def one(x: Array) -> Array:
            assert self.problem.features is not None
            gradients = self.problem.features * self._residuals(x)[:, None]
            return sign_of_resampled(gradients, jnp.zeros_like(gradients), self.batch_size)

        return one(x) if x.ndim == 1 else lax.map(one, x.T, batch_size=16).T

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        assert self.problem.samples is not None
        return (self.problem.samples,)

    def apply_root(self, x: Array, dW: Array) -> Array:
        """Σᵢ dWᵢ(φᵢrᵢ − ∇f)/√(nB), whose covariance is that of a mini-batch."""
        assert self.problem.features is not None
        weighted = dW * self._residuals(x)
        total = jnp.matmul(self.problem.features.T, weighted, precision="highest")
        total = total - self.problem.evaluate(x)[1] * dW.sum(axis=0)
        return total / math.sqrt(dW.shape[0] * self.batch_size)

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        """Noise of g and of g² as for mini-batches of any problem, see `ExampleLaw.apply_root_and_square`."""
        assert self.problem.features is not None
        root, batch = self.apply_root(x, dW), self.batch_size
        weights = (dW - dW.mean(axis=0)) / math.sqrt(dW.shape[0] * batch)
        square = jnp.matmul(self.problem.features.T**2, weights * self._residuals(x) ** 2, precision="highest")
        pairs = math.sqrt(1 - 1 / batch) * centred_square(root, self.variance(x), dt)
        return root, 2 * grad * root + (square - 2 * grad * root) / batch + pairs

    def _residuals(self, x: Array) -> Array:
        assert self.problem.features is not None
        assert self.problem.labels is not None
        fitted = jnp.matmul(self.problem.features, x, precision="highest")
        return fitted - column(self.problem.labels, fitted)

    def _second_moment(self, x: Array) -> Array:
        """E φᵢ²r² of one example, shape of x."""
        assert self.problem.features is not None
        residuals = self._residuals(x)
        return jnp.matmul(self.problem.features.T**2, residuals**2, precision="highest") / residuals.shape[0]


def cumulants_of_batch(batch_size: int, grad: Array, variance: Array) -> tuple[Array, Array]:
    """k₃/∂f and k₄ of a mean of B products of two normal numbers, with mean ∂f and the given variance.

    A product of two standard normal numbers with correlation c has the cumulants 6c + 2c³ and 6(1 + 6c² + c⁴).
    """
    single = jnp.maximum(variance * batch_size - grad**2, 0)
    square = jnp.clip(grad**2 / jnp.maximum(single, jnp.finfo(grad.dtype).tiny), 0, 1)
    third = (6 + 2 * square) * single / batch_size**2
    return third, 6 * (1 + 6 * square + square**2) * single**2 / batch_size**3


def sign_of_batch(batch_size: int, grad: Array, single: Array) -> Array:
    """E sign of a mean of B products of two normal numbers: 2F_B(√B ∂f/√(single − ∂f²)) − 1."""
    tiny = jnp.finfo(grad.dtype).tiny
    rest = jnp.sqrt(jnp.maximum(single - grad**2, tiny))
    return StudentTNoise(1.0, batch_size).standard_mean_sign(math.sqrt(batch_size) * grad / rest)


def sign_of_resampled(values: Array, variances: Array, batch_size: int) -> Array:
    r"""E sign of the mean of B draws, with replacement, from n values per coordinate.

    For B = 1 it is the mean sign of the values; for larger B it is Gil-Pelaez's integral (2/π) ∫₀^∞ Im φ(t)^B dt/t with
    the values' characteristic function φ, by Gauss-Legendre quadrature.

    Args:
        values: shape (n, d).
        variances: variances of a normal spread around every value, shape (n, d).
        batch_size: B.

    Returns:
        Shape (d,).
    """
    tiny = jnp.finfo(values.dtype).tiny
    spread = jnp.sqrt(2 * variances)
    if batch_size == 1:
        blurred = lax.erf(values / jnp.where(variances > 0, spread, 1))
        return jnp.where(variances > 0, blurred, jnp.sign(values)).mean(axis=0)
    size = jnp.sqrt(jnp.maximum((values**2 + variances).mean(axis=0), tiny) * batch_size)
    share, weight = (jnp.asarray(v, values.dtype) for v in _UNIT_RULE)

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        share, weight = node
        t = share / (1 - share) / size
        damped = jnp.exp(-0.5 * t**2 * variances)
        real, imaginary = ((damped * f(t * values)).mean(axis=0) for f in (jnp.cos, jnp.sin))
        gone = real**2 + imaginary**2 < 1e-20  # where the modulus and the angle have no derivative
        real, imaginary = jnp.where(gone, 1, real), jnp.where(gone, 0, imaginary)
        radius = jnp.hypot(real, imaginary) ** batch_size
        whole = jnp.where(gone, 0, radius * jnp.sin(batch_size * jnp.arctan2(imaginary, real)))
        return total + weight * whole / (share * (1 - share)), None

    total, _ = lax.scan(add, jnp.zeros_like(size), (share, weight))
    mean = values.mean(axis=0)
    spread2 = jnp.maximum((values**2 + variances).mean(axis=0) - mean**2, tiny)
    certain = math.sqrt(batch_size) * jnp.abs(mean) > 5 * jnp.sqrt(spread2)  # where the integrand oscillates too fast
    return jnp.where(certain, jnp.sign(mean), jnp.clip((2 / math.pi) * total, -1, 1))


def _sum_of_squares(stream: Stream, count: int, dtype: Any) -> Array:
    """χ² with `count` degrees of freedom, shape (P,)."""
    width = min(count, 64)

    def add(block: Array, total: Array) -> Array:
        drawn = stream.normal(width, dtype, lane=2 + block)
        used = block * width + lax.iota(jnp.int32, width) < count
        return total + sum_coordinates(jnp.where(used[:, None], drawn, 0) ** 2)

    return lax.fori_loop(0, -(-count // width), add, jnp.zeros(stream.paths.shape[0], dtype))


def _diagonal(covariance: Array) -> Array:
    return covariance if covariance.ndim == 1 else jnp.diag(covariance)
