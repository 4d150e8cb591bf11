"""The SDE of SignSGD."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from sdelens.noise import AbstractNoise
from sdelens.optimizers import SignSGD, State
from sdelens.problems import AbstractProblem
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["SignSGDSDE"]


class SignSGDSDE(OptimizerSDE):
    r"""SDE of SignSGD with decoupled weight decay, for noise with independent coordinates.

    dX = −h(e(X) + θX) dt − h √η √(1 − e(X)²) dW,  e = E sign(g) = 1 − 2 P(g < 0), element-wise.

    For Gaussian noise e = erf(∇f/(√2 σ)). θ is the decay rate per unit of time and h the schedule's multiplier. The
    sign of dW is free in law; the minus makes it the noise of the sign.

    Source: arXiv 2411.15958. At Δt = η its Euler-Maruyama scheme has SignSGD's first two moments exactly; only substeps
    show the error of the SDE itself.
    """

    problem: AbstractProblem
    noise: AbstractNoise
    optimizer: SignSGD

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One Brownian motion per coordinate, whatever the noise's own: the signs' covariance is diagonal."""
        return (self.problem.dim,)

    def drift(self, t: Instant, y: State, grad: Array, ahead: Mapping[str, Any]) -> State:  # noqa: D102
        mean = self.noise.mean_sign(grad, y.x)
        return State(-self.optimizer.multiplier(t.step) * (mean + self.optimizer.decay_rate * y.x))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        mean = self.noise.mean_sign(grad, y.x)
        size = -self.optimizer.multiplier(t.step) * jnp.sqrt(self.optimizer.lr)
        # (1 - e)(1 + e) keeps its digits as |e| -> 1, where 1 - e² can come out below 0.
        return State(size * jnp.sqrt((1 - mean) * (1 + mean)) * dW)
