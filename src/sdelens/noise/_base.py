"""Interfaces of noise: the specification a user writes, and the law on one problem."""

import abc
import math
from functools import singledispatch
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.problems import AbstractProblem

__all__ = [
    "AbstractNoise",
    "BatchLaw",
    "NoiseLaw",
    "centred_square",
]


class AbstractNoise(eqx.Module):
    """A specification of the noise Z: what a user writes, before it meets a problem.

    A subclass for a new law usually derives from `ScaledNoise`, which is its own law once its numbers are laid out.
    """

    @abc.abstractmethod
    def bind(self, problem: AbstractProblem) -> "NoiseLaw":
        """The law of Z along the problem's flat coordinates, with all numbers checked.

        Raises:
            ValueError, TypeError: if the noise does not fit the problem; the message names the argument.
        """

    @abc.abstractmethod
    def at_batch_ratio(self, ratio: float) -> "AbstractNoise":
        """The noise when the batch is `ratio` times as large.

        Raises:
            ValueError: if `ratio` is not positive, or the averaged law is not known.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the noise, JSON types only; ``rerunnable`` is False if it cannot be rebuilt."""

    def __add__(self, other: "AbstractNoise") -> "AbstractNoise":
        """The sum of two independent noises."""
        return independent_sum(self, other)


class RareGradients(NamedTuple):
    """Coordinates of which more than half of the mini-batches have a gradient of exactly 0, but not all.

    Attributes:
        rare: number of these coordinates.
        active: number of coordinates with a gradient that is not always 0.
        share: part of these coordinates in the sum over coordinates of √(E g²), where g is one example's gradient.
        zero: mean over these coordinates of the probability of a gradient of 0.
    """

    rare: int
    active: int
    share: float
    zero: float


class NoiseLaw(eqx.Module):
    """The law of the noise Z on the coordinates of one problem, symmetric except for mini-batches and the user's draws.

    The stochastic gradient is g = E g + Z with E Z = 0. E g is ∇f unless the law is `biased`; methods with an argument
    `grad` take E g, except `mean_gradient`, `gradient` and `compute_cache`, which take ∇f.

    Methods take x and ∇f of shape (d,) or (d, P) and return shapes that broadcast to it. Every law has draws and a
    variance; whatever else is not known for a law raises a ValueError that says what to use instead. The methods
    implemented here are those of noise with independent coordinates.
    """

    normal: ClassVar[bool] = False
    """Whether Z has the same law as `apply_root` of standard normal numbers."""
    independent: ClassVar[bool] = True
    """Whether the coordinates of Z are independent at every x, each with a law of its own."""
    constant: ClassVar[bool] = True
    """Whether the law of Z is the same at every x."""
    has_quadrature: ClassVar[bool] = True
    """Whether `quadrature` is known."""
    has_covariance: ClassVar[bool] = False
    """Whether coordinates are correlated and `covariance` gives their matrix."""

    needs_gradient: ClassVar[bool] = True
    """Whether `gradient` uses ∇f."""
    biased: ClassVar[bool] = False
    """Whether E g is not ∇f, so that `mean_gradient` must be used."""
    scheduled: ClassVar[bool] = False
    """Whether the law changes with the step, so that `at_step` must be used."""
    silent: ClassVar[bool] = False
    """Whether Z is always 0."""
    fixed_signs: ClassVar[bool] = False
    """Whether `mean_sign` is that of g at x, whatever gradient it is given."""
    variance_remedy: ClassVar[str] = ""
    """What else a user can do where an SDE needs a variance, as a sentence that begins with a space."""
    sign_samples: ClassVar[int] = 8
    """Number of draws from which laws of signs are estimated, where they are."""

    @abc.abstractmethod
    def sample(self, x: Array, stream: Stream) -> Array:
        """One draw of Z for every path: shape (d, P)."""

    @abc.abstractmethod
    def variance(self, x: Array) -> Array:
        """Diagonal of Σ = Cov Z, infinite where it does not exist."""

    @abc.abstractmethod
    def mean_sign(self, grad: Array, x: Array) -> Array:
        """E sign(∇f + Z), element-wise; its derivative in ∇f is 2p(∇f), smooth at 0."""

    @abc.abstractmethod
    def density(self, z: Array, x: Array) -> Array:
        """Density p of one coordinate of Z at z, element-wise."""

    @abc.abstractmethod
    def quadrature(self, x: Array) -> tuple[Array, Array]:
        """Nodes z, shape (K, 1) or (K, d), and weights, shape (K,) or (K, d), such that E u(Zᵢ) ≈ Σₖ wₖ u(zₖᵢ)."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name and numbers of the law as in `AbstractNoise.describe`."""

    def at_step(self, k: Array | int) -> "NoiseLaw":
        """The law at optimizer step k; it differs from this one only for `ScheduledNoise`."""
        return self

    def mean_gradient(self, x: Array, grad: Array) -> Array:
        """E g at x, where ∇f = `grad`."""
        return grad

    @property
    def signs_as_normal(self) -> bool:
        """Whether the law of sign(g) is taken as that of a normal g."""
        return self.normal

    def draw(self, x: Array, grad: Array, stream: Stream) -> Array:
        """One draw of g = E g + Z for every path, where ∇f = `grad`: shape (d, P)."""
        return self.mean_gradient(x, grad) + self.sample(x, stream)

    def has_variance(self, x: Array) -> bool:
        """Whether the diagonal of Σ is finite at x; assumed to be if x is traced."""
        variance = self.variance(x)
        return check.is_traced(variance) or bool(jnp.isfinite(variance).all())

    def covariance(self, x: Array) -> Array:
        """Σ as a matrix, at one x of shape (d,)."""
        return jnp.diag(jnp.broadcast_to(self.variance(x), x.shape))

    def scales(self, x: Array) -> Array:
        """The scale σ of every coordinate: here that of the normal law with the same density at 0."""
        return 1 / (math.sqrt(2 * math.pi) * self.density(jnp.zeros_like(x), x))

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        """The stochastic gradient of step k, drawn from the stream of the whole run: shape (d, P)."""
        law = self.at_step(k)
        return law.mean_gradient(x, grad) + law.sample(x, stream.at(k))

    @property
    def cache_steps(self) -> int:
        """Steps for which the value of `compute_cache` is reused."""
        return 1

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        """Expensive statistics of the law at x, reusable for `cache_steps` steps: a pytree of (d, P) arrays, or None.

        Args:
            use: what an SDE needs: ``"variance"``, ``"signs"``, or ``"root"`` if it needs neither.
            x: shape (d, P).
            grad: ∇f at x.
            stream: random numbers of this evaluation.
        """
        return None

    def with_cache(self, found: Any) -> "NoiseLaw":
        """The law that uses an earlier value of `compute_cache` as its current statistics."""
        return self

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        """Shape, per path, of the Brownian motion that `apply_root` takes."""
        return (dim,)

    def apply_root(self, x: Array, dW: Array) -> Array:
        """Σ^{1/2} dW, of the shape of x."""
        return jnp.sqrt(self.variance(x)) * dW

    def split_root(self, x: Array, dW: Array) -> tuple[Array, Array]:
        """Σ^{1/2} times the first part of a flat dW, and the last d numbers of dW."""
        dim = x.shape[0]
        return self.apply_root(x, dW[:-dim].reshape(*self.noise_shape(dim), *dW.shape[1:])), dW[-dim:]

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        """Shape, per path, of the Brownian motion that `apply_sign_root` takes.

        Raises:
            ValueError: if the covariance of the signs is not known.
        """
        return (dim,)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        """Cov(sign(∇f + Z))^{1/2} dW, of the shape of x."""
        mean = self.mean_sign(grad, x)
        # (1 - e)(1 + e) stays accurate as |e| -> 1, where 1 - e² may become negative. √0 has no derivative.
        variance = jnp.maximum((1 - mean) * (1 + mean), jnp.finfo(mean.dtype).tiny)
        return jnp.sqrt(variance) * self._noisy(x) * dW

    def _noisy(self, x: Array) -> Array | float:
        """0 for coordinates without noise, whose signs are constant even where ∂f = 0; 1 for all others."""
        return 1.0

    def signed_mean(self, grad: Array, x: Array) -> Array:
        """E[Z sign(∇f + Z)] = 2 ∫_{|∇f|}^∞ z p(z) dz of symmetric laws, element-wise; infinite without a mean."""
        raise NotImplementedError

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        """Shape, per path, of the Brownian motion that `apply_joint_root` takes; that of `apply_root` comes first.

        Raises:
            ValueError: if the joint covariance is not known.
        """
        return (math.prod(self.noise_shape(dim)) + dim,)

    def apply_joint_root(self, grad: Array, x: Array, dW: Array) -> tuple[Array, Array]:
        r"""Root of the joint covariance of sign(a + Z) and Z, times dW: two parts of the shape of x.

        Z = Σ^{1/2} dW₁ as in `apply_root`, and sign(a + Z) − E sign = cZ + R. Here c = E[Z sign(a + Z)]/σ² is the slope
        of the regression on Z, and the residual R has variance 1 − e² − c²σ², is uncorrelated with Z, and is driven by
        dW₂.

        Args:
            grad: a; its mean sign E sign(a + Z) is e.
            x: parameters at which the law is evaluated.
            dW: increments of shape `joint_shape`, or with a further last axis P.
        """
        own, other = self.split_root(x, dW)
        tiny = jnp.finfo(own.dtype).tiny
        mean, variance = self.mean_sign(grad, x), jnp.maximum(self.variance(x), tiny)
        slope = self.signed_mean(grad, x) / variance
        rest = jnp.maximum((1 - mean) * (1 + mean) - slope**2 * variance, tiny)
        return slope * own + jnp.sqrt(rest) * self._noisy(x) * other, own

    def fourth_cumulant(self, x: Array) -> Array:
        """E Z⁴ − 3σ⁴, element-wise: 0 for normal noise, infinite where there is no fourth moment or it is not known."""
        return jnp.full_like(x, jnp.inf)

    def excess_kurtosis(self, x: Array) -> Array:
        """E Z⁴/σ⁴ − 3, element-wise; infinite where there is no fourth moment, or it is not known."""
        variance = self.variance(x)
        known = jnp.isfinite(variance) & (variance > 0)
        return jnp.where(known, self.fourth_cumulant(x) / jnp.where(known, variance, 1) ** 2, jnp.inf)

    def lacks_fourth_moment(self, x: Array) -> bool:
        """Whether E Z⁴ is known to be infinite; False if x is traced."""
        cumulant = self.fourth_cumulant(x)
        return not check.is_traced(cumulant) and not bool(jnp.isfinite(cumulant).all())

    def rare_gradients(self, x: Array) -> RareGradients | None:
        """Coordinates whose gradient is exactly 0 in most steps; None where gradients have a density."""
        return None

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        r"""Noise of g and of g² = (∇f + Z)² from the same normal increments dW of variance dt.

        Z = Σ^{1/2} dW, and 2∇f∘Z + √(1 + κ/2) (Z∘Z/dt − diag Σ) √dt with the excess kurtosis κ: the increment
        (dW² − dt)/√(2dt) of a second Brownian motion is uncorrelated with dW, so for a symmetric law both have the
        variances and covariances of g and g², to leading order in dt; for a normal law and dt = 1 they are those of one
        draw.

        Args:
            grad: ∇f at x.
            x: parameters at which the law is evaluated.
            dW: increments as in `apply_root`.
            dt: their variance.
        """
        root = self.apply_root(x, dW)
        size = jnp.sqrt(jnp.maximum(1 + self.excess_kurtosis(x) / 2, 0))
        return root, 2 * grad * root + size * centred_square(root, self.variance(x), dt)


@singledispatch
def independent_sum(first: Any, second: Any) -> Any:
    """The sum of two independent noises; its implementation is registered in `_sum`."""
    return NotImplemented


class BatchLaw(NoiseLaw):
    """Base of the laws of mini-batch noise."""

    independent: ClassVar[bool] = False
    constant: ClassVar[bool] = False
    has_quadrature: ClassVar[bool] = False

    def has_variance(self, x: Array) -> bool:
        """Always True, without evaluating the variance, which would dominate the cost of a step."""
        return True

    def density(self, z: Array, x: Array) -> Array:
        raise ValueError("noise: mini-batch noise has no density here.")

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        raise ValueError("noise: mini-batch noise has no quadrature.")

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        raise ValueError(
            "noise: the joint law of the signs of these mini-batches and their gradients is not known here; use the "
            "model 'empirical', which draws both."
        )

    def lacks_fourth_moment(self, x: Array) -> bool:
        """False: the gradients of a finite data set have all moments, and so have those of a normal design."""
        return False


def centred_square(root: Array, variance: Array, dt: Any) -> Array:
    """(Z∘Z/dt − diag Σ) √dt for Z = Σ^{1/2} dW, whose variance is 2(diag Σ)² dt for normal dW of variance dt."""
    return (root**2 * (1 / dt) - variance) * jnp.sqrt(dt)
