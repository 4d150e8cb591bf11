"""The SDE of SGD."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from sdelens.noise import AbstractNoise
from sdelens.optimizers import SGD, State
from sdelens.problems import AbstractProblem
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["SGDSDE"]


class SGDSDE(OptimizerSDE):
    r"""First-order SDE of SGD with decoupled weight decay.

    dX = −h(∇f(X) + θX) dt − h √η Σ(X)^{1/2} dW

    with η `lr`, θ the decay rate per unit of time and h the schedule's multiplier. The sign of dW, free in
    law, makes it the gradient noise itself.

    Source: Li, Tai, E 2017 (arXiv 1511.06251); arXiv 2411.15958. At Δt = η under Gaussian noise its Euler-Maruyama
    scheme *is* SGD, so only substeps show the error of the SDE itself.
    """

    problem: AbstractProblem
    noise: AbstractNoise
    optimizer: SGD

    def drift(self, t: Instant, y: State, grad: Array, ahead: Mapping[str, Any]) -> State:  # noqa: D102
        return State(-self.optimizer.multiplier(t.step) * (grad + self.optimizer.decay_rate * y.x))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        size = -self.optimizer.multiplier(t.step) * jnp.sqrt(self.optimizer.lr)
        return State(size * self.noise.apply_root(y.x, dW))
