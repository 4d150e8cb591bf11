"""The SDE of Adagrad."""

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import Adagrad, State
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["AdagradSDE"]


class AdagradSDE(OptimizerSDE):
    r"""SDE of Adagrad with decoupled weight decay.

    dX = −h(∇f dt + √η Σ^{1/2} dW)/√(V + ε) − hθX dt
    dV = ((∇f)² + diag Σ)/η dt

    with θ the decay rate per unit of time and h the schedule's multiplier; X does not move while V = 0.

    Derivation. dV is the mean of g² per step of time η; dX is SGD's update divided by the root of the new V, which the
    integrators advance first. V grows by O(1) per step, so the equation is not a limit as η → 0 and no order is
    claimed: it is accurate if V is the sum of many squares, whose fluctuation it neglects.
    """

    optimizer: Adagrad

    def __check_init__(self) -> None:
        self._require_variance()

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt = self.optimizer
        dx = -opt.multiplier(t.step) * (self._inverse_root(y) * grad + opt.decay_rate * y.x)
        return State(dx, v=(grad**2 + self.noise.variance(y.x)) / opt.lr)

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        size = -opt.multiplier(t.step) * jnp.sqrt(opt.lr)
        return State(size * self._inverse_root(y) * self.noise.apply_root(y.x, dW), v=0.0)

    def _inverse_root(self, y: State) -> Array:
        positive = y.v > 0
        return jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, y.v, 1) + self.optimizer.eps), 0)
