"""The SDE of Signum and Lion."""

from collections.abc import Mapping
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

    with c = E[Z sign(a + Z)]/σ², the slope of the sign's regression on the gradient noise, and R the covariance of what
    it leaves: diag(1 − e² − c²σ²) for independent coordinates. b is β₁; ρ = (1 − β₁)/η for Signum and (1 − β₂)/η for
    Lion; θ is the decay rate per unit of time and h the schedule's multiplier.

    Derivation. sign(bM + (1 − b)g) = sign(a + Z), Z the noise of g: its mean is e, its covariance with Z cσ², its
    variance 1 − e². The noise of M's update is ρηZ. So the first two moments of one update are exactly those of the
    Euler-Maruyama step at Δt = η in which X and M move from the old M.

    At fixed b, Lion's β₁, all increments are O(η) with coefficients as smooth as the noise's law: weak order 1 as
    η → 0 at fixed ρ. Signum's b = 1 − ηρ tends to 1 there, and e to sign(M): no order is claimed.

    The law of Z must have a variance. Of noise with a covariance matrix, sign i is regressed on Zᵢ alone, exactly
    where that is normal; of mini-batches, g is taken as normal (``signs="normal"``).
    """

    together: ClassVar[bool] = True
    root_first: ClassVar[bool] = True
    optimizer: Signum | Lion

    def __check_init__(self) -> None:
        self._require_variance()
        _ = self.noise_shape  # refuses a joint law that cannot be had

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The gradient noise's, and that of the rest of the signs."""
        return self.noise.joint_shape(self.problem.dim)

    @property
    def rho(self) -> Any:
        """ρ, the rate at which M forgets, per unit of time."""
        return (1 - self.optimizer.memory) / self.optimizer.lr

    def drift(self, t: Instant, y: State, grad: Array, advanced: Mapping[str, Any]) -> State:  # noqa: D102
        opt = self.optimizer
        mean = self.noise.mean_sign(self._inner(y, grad), y.x)
        return State(-opt.multiplier(t.step) * (mean + opt.decay_rate * y.x), m=self.rho * (grad - y.m))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        root = jnp.sqrt(self.optimizer.lr)
        sign, own = self.noise.apply_joint_root(self._inner(y, grad), y.x, dW)
        return State(-self.optimizer.multiplier(t.step) * root * sign, m=root * self.rho * own)

    def _inner(self, y: State, grad: Array) -> Array:
        """The a of sign(a + Z)."""
        b = self.optimizer.b1
        return grad + b / (1 - b) * y.m
