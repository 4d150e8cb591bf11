"""The SDE of Muon."""

import math
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sdelens.noise.matrix_sign import MatrixSign, matrix_sign
from sdelens.optimizers import Muon, State, width_factor
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["MuonSDE"]


class MuonSDE(OptimizerSDE):
    r"""SDE of Muon: descent by the matrix sign of κM + g, with the old M.

    dX = −h(c E sign(a + Z) + θX) dt − h√η c (C[Σ^{1/2} dW₁] + R^{1/2} dW₂),  a = ∇f + κM
    dM = ρ(∇f − M) dt + √η ρ Σ^{1/2} dW₁

    for every matrix, with c = max(1, columns/rows)^½; κ = β₁/(1 − β₁), or for Nesterov's form β₁²/(1 − β₁²) after its
    bias correction; ρ = (1 − β₁)/η; θ the decay rate per unit of time and h the schedule's multiplier. For a =
    U diag(s) Vᵀ and entries Z ~ N(0, σ²), E sign(a + Z) = U D Vᵀ; C is its derivative, and R the covariance of what
    C does not explain (`sdelens.noise.matrix_sign`). There are three phases: s ≫ σ√n, where D = 1 and only C is left;
    between; and s ≪ σ√n, where D is linear in s and R isotropic. Parameters that are no matrices move by signs, as in
    `SignumSDE`.

    Exact: at Δt = η the first two moments of a step for independent normal entries of equal variance in the limit of
    large matrices. Approximate:

    - D is a deterministic equivalent with an error of order 1/n: measured 0.06 at most for 2 × 2, 0.05 for 8 × 8, 0.01
      for 8 × 4 and 64 × 64 (docs/matrix-sign.md); the variances of R likewise.
    - D and R use the mean variance of the entries of a matrix, and take the noise as independent and normal. C acts on
      the noise with its actual covariance, so mini-batches are described to first order in the noise.
    - Signs of other parameters are taken as those of normal numbers with the variance of the noise.

    Source: the resolvent of a noisy matrix as in Benaych-Georges and Nadakuditi 2012 (arXiv 1103.2221); the covariance
    of its matrix sign is derived in docs/matrix-sign.md.
    """

    together: ClassVar[bool] = True
    root_first: ClassVar[bool] = True
    optimizer: Muon

    def __check_init__(self) -> None:
        self._require_variance()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the Brownian motions of the gradient noise and of what remains of the sign's noise."""
        dim = self.problem.dim
        return (math.prod(self.noise.noise_shape(dim)) + dim,)

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt = self.optimizer
        means = [law.mean for law in self._laws(t, y, grad)]
        return State(-opt.multiplier(t.step) * (_joined(means, y.x) + opt.decay_rate * y.x), m=opt.rho1 * (grad - y.m))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        own, other = self.noise.split_root(y.x, dW)
        split = self.problem.layout.split
        laws = self._laws(t, y, grad)
        noises = [law.noise(z, w) for law, z, w in zip(laws, split(own), split(other), strict=True)]
        root = jnp.sqrt(self.optimizer.lr)
        return State(
            -self.optimizer.multiplier(t.step) * root * _joined(noises, y.x), m=root * self.optimizer.rho1 * own
        )

    def _laws(self, t: Instant, y: State, grad: Array) -> "list[_MatrixLaw | _SignLaw]":
        """The law of the direction of every parameter."""
        old, new = self.optimizer.weights(t.step)
        a = grad + (old / new) * y.m
        variance = jnp.broadcast_to(self.noise.variance(y.x), y.x.shape)
        split, paths = self.problem.layout.split, y.x.ndim - 1
        return [
            _MatrixLaw.of(part, var) if part.ndim - paths == 2 else _SignLaw(part, var)
            for part, var in zip(split(a), split(variance), strict=True)
        ]


class _MatrixLaw(NamedTuple):
    """Law of the direction of a matrix.

    Attributes:
        law: the law of its matrix sign, transposed if the matrix is wider than it is high.
        wide: whether it is transposed.
        factor: c.
    """

    law: MatrixSign
    wide: bool
    factor: float

    @classmethod
    def of(cls, a: Array, variance: Array) -> "_MatrixLaw":
        wide = a.shape[0] < a.shape[1]
        law = matrix_sign(_turned(a, wide), jnp.mean(variance, axis=(0, 1)))
        return cls(law, wide, width_factor(a.shape[:2]))

    @property
    def mean(self) -> Array:
        return self.factor * _turned(self.law.expectation(), self.wide)

    def noise(self, z: Array, dW: Array) -> Array:
        z, dW = _turned(z, self.wide), _turned(dW, self.wide)
        return self.factor * _turned(self.law.regression(z) + self.law.residual(dW), self.wide)


class _SignLaw(NamedTuple):
    """Law of sign(a + Z), element-wise, for normal Z.

    Attributes:
        a: shape (…, P).
        variance: σ², of that shape.
    """

    a: Array
    variance: Array

    @property
    def mean(self) -> Array:
        return jnp.where(self.variance > 0, lax.erf(self.a / jnp.sqrt(2 * self._variance)), jnp.sign(self.a))

    def noise(self, z: Array, dW: Array) -> Array:
        variance, mean = self._variance, self.mean
        slope = math.sqrt(2 / math.pi) * jnp.exp(-0.5 * self.a**2 / variance) / jnp.sqrt(variance)
        slope = jnp.where(self.variance > 0, slope, 0)
        rest = (1 - mean) * (1 + mean) - slope**2 * variance
        return slope * z + jnp.where(self.variance > 0, jnp.sqrt(jnp.maximum(rest, 0)), 0) * dW

    @property
    def _variance(self) -> Array:
        return jnp.where(self.variance > 0, self.variance, 1)


def _turned(a: Array, wide: bool) -> Array:
    return jnp.swapaxes(a, 0, 1) if wide else a


def _joined(parts: list[Any], like: Array) -> Array:
    """Parts of all parameters as one flat array."""
    return jnp.concatenate([part.reshape(-1, *like.shape[1:]) for part in parts])
