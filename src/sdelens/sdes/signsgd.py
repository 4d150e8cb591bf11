"""The SDE of SignSGD."""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import SignSGD, State
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["SignSGDSDE"]


class SignSGDSDE(OptimizerSDE):
    r"""SDE of SignSGD with decoupled weight decay, for any noise, with a variance or without.

    dX = −h(e(X) + θX) dt − h √η Σ̄(X)^{1/2} dW,  e = E sign(g) = 1 − 2 P(g < 0),  Σ̄ = Cov(sign g).

    For Gaussian noise e = erf(∇f/(√2 σ)); for other laws see their `mean_sign`. Σ̄ is diag(1 − e²) unless the noise is
    correlated. θ is the decay rate per unit of time and h the schedule's multiplier. The sign of dW does not affect the
    law; with the minus sign, Σ̄^{1/2} dW is the noise of the sign.

    Source: arXiv 2411.15958. At Δt = η its Euler-Maruyama scheme has exactly SignSGD's first two moments, so only
    substeps show the error of the SDE itself.
    """

    uses: ClassVar[str] = "signs"
    optimizer: SignSGD

    def __check_init__(self) -> None:
        _ = self.noise_shape  # raises an error if the covariance of the signs is not known

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the Brownian motion of the signs, not of the gradient noise."""
        return self.noise.sign_shape(self.problem.dim)

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        mean = self.noise.mean_sign(grad, y.x)
        return State(-self.optimizer.multiplier(t.step) * (mean + self.optimizer.decay_rate * y.x))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        size = -self.optimizer.multiplier(t.step) * jnp.sqrt(self.optimizer.lr)
        return State(size * self.noise.apply_sign_root(grad, y.x, dW))
