"""The SDE of RMSprop and RMSpropW."""

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import RMSpropW, State, precondition
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["RMSpropWSDE"]


class RMSpropWSDE(OptimizerSDE):
    r"""SDE of RMSprop with decoupled weight decay.

    dX = −h P⁻¹(∇f dt + √η Σ^{1/2} dW) − hθX dt
    dV = ρ₂((∇f)² + diag Σ − V) dt

    with P = diag(√V) + εI, ρ₂ = (1 − β₂)/η, θ the decay rate per unit of time and h the schedule's multiplier.

    Source: arXiv 2411.15958. The integrators advance V first and use the new V in P, as the algorithm does (with the
    old V, the first step from V = 0 would divide by ε).
    """

    optimizer: RMSpropW

    def __check_init__(self) -> None:
        self._require_variance()

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt = self.optimizer
        dx = -opt.multiplier(t.step) * (precondition(grad, y.v, opt.eps) + opt.decay_rate * y.x)
        return State(dx, v=opt.rho2 * (grad**2 + self.noise.variance(y.x) - y.v))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        size = -opt.multiplier(t.step) * jnp.sqrt(opt.lr)
        return State(size * precondition(self.noise.apply_root(y.x, dW), y.v, opt.eps), v=0.0)
