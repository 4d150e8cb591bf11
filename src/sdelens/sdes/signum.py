"""The SDE of Signum and Lion."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import Lion, Signum, State
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["SignumSDE"]


class SignumSDE(OptimizerSDE):
    r"""SDE of optimizers that move by the sign of bM + (1 − b)g with the old M: Signum and Lion.

    dX = −h(e + θX) dt − h√η (c Σ^{1/2} dW₁ + R^{1/2} dW₂),  e = E sign(a + Z),  a = ∇f + bM/(1 − b)
    dM = ρ(∇f − M) dt + √η ρ Σ^{1/2} dW₁

    with c = E[Z sign(a + Z)]/σ², the slope of the regression of the sign on the gradient noise, and R the covariance of
    the residual: diag(1 − e² − c²σ²) for independent coordinates. b is β₁; ρ = (1 − β₁)/η for Signum and (1 − β₂)/η for
    Lion; θ is the decay rate per unit of time and h the schedule's multiplier.

    Derivation. sign(bM + (1 − b)g) = sign(a + Z), where Z is the noise of g: its mean is e, its covariance with Z is
    cσ², and its variance is 1 − e². The noise of M's update is ρηZ. The first two moments of one update are therefore
    exactly those of the Euler-Maruyama step at Δt = η in which X and M move from the old M.

    At fixed b (β₁ for Lion) all increments are O(η) and the coefficients are as smooth as the law of the noise, which
    gives weak order 1 as η → 0 at fixed ρ. For Signum, b = 1 − ηρ tends to 1 and e to sign(M), so no order is claimed.

    The law of Z must have a variance. For noise with a covariance matrix, the sign of coordinate i is regressed on Zᵢ
    alone, which is exact if the noise is normal; for mini-batches, g is treated as normal (``signs="normal"``).
    """

    together: ClassVar[bool] = True
    root_first: ClassVar[bool] = True
    optimizer: Signum | Lion

    def __check_init__(self) -> None:
        self._require_variance()
        _ = self.noise_shape  # raises an error if the joint law of sign and noise is not known

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the Brownian motions of the gradient noise and of the residual of the signs."""
        return self.noise.joint_shape(self.problem.dim)

    @property
    def rho(self) -> Any:
        """ρ, the rate at which M forgets past gradients, per unit of time."""
        return (1 - self.optimizer.memory) / self.optimizer.lr

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt = self.optimizer
        mean = self.noise.mean_sign(self._inner(y, grad), y.x)
        return State(-opt.multiplier(t.step) * (mean + opt.decay_rate * y.x), m=self.rho * (grad - y.m))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        root = jnp.sqrt(self.optimizer.lr)
        sign, own = self.noise.apply_joint_root(self._inner(y, grad), y.x, dW)
        return State(-self.optimizer.multiplier(t.step) * root * sign, m=root * self.rho * own)

    def _inner(self, y: State, grad: Array) -> Array:
        """The argument a in sign(a + Z)."""
        b = self.optimizer.b1
        return grad + b / (1 - b) * y.m
