"""The SDEs of SGD, of first and of second order."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import SGD, State
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["SGDSDE", "SecondOrderSGDSDE"]


class SGDSDE(OptimizerSDE):
    r"""First-order SDE of SGD with decoupled weight decay.

    dX = −h(∇f(X) + θX) dt − h √η Σ(X)^{1/2} dW

    with η = `lr`, θ the decay rate per unit of time and h the schedule's multiplier. The sign of dW does not affect the
    law; with the minus sign, Σ^{1/2} dW is the gradient noise itself.

    Source: Li, Tai, E 2017 (arXiv 1511.06251); arXiv 2411.15958. At Δt = η with Gaussian noise its Euler-Maruyama
    scheme *is* SGD, so only substeps show the error of the SDE itself.
    """

    uses: ClassVar[str] = "root"
    optimizer: SGD

    def __check_init__(self) -> None:
        self._require_variance()

    def drift(self, t: Instant, y: State, grad: Array, advanced: Mapping[str, Any]) -> State:  # noqa: D102
        return State(-self.optimizer.multiplier(t.step) * (grad + self.optimizer.decay_rate * y.x))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        size = -self.optimizer.multiplier(t.step) * jnp.sqrt(self.optimizer.lr)
        return State(size * self.noise.apply_root(y.x, dW))


class SecondOrderSGDSDE(OptimizerSDE):
    r"""Second-order SDE of SGD with decoupled weight decay.

    dX = −∇(hF + (η/4)h²‖∇F‖²)(X) dt − h √η Σ(X)^{1/2} dW,  F = f + θ‖x‖²/2,

    where ∇‖∇F‖²/2 = (∇²F)∇F costs one Hessian-vector product. h is constant over each step.

    Source: Li, Tai, E 2017 (arXiv 1511.06251). Its weak order is 2 only if the equation is integrated accurately
    enough: Euler-Maruyama at Δt = η has an error of order 1, and is then further from SGD than the first-order SDE,
    whose Euler-Maruyama scheme is SGD itself. Use substeps.
    """

    uses: ClassVar[str] = "root"
    optimizer: SGD

    def __check_init__(self) -> None:
        self._require_variance()

    def drift(self, t: Instant, y: State, grad: Array, advanced: Mapping[str, Any]) -> State:  # noqa: D102
        theta, h = self.optimizer.decay_rate, self.optimizer.multiplier(t.step)
        total = grad + theta * y.x
        along = jax.jvp(lambda x: self.problem.evaluate(x)[1], (y.x,), (total,))[1] + theta * total
        return State(-h * (total + 0.5 * self.optimizer.lr * h * along))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        size = -self.optimizer.multiplier(t.step) * jnp.sqrt(self.optimizer.lr)
        return State(size * self.noise.apply_root(y.x, dW))
