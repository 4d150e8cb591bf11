"""The SDEs of SGD, of first and of second order."""

from functools import partial
from typing import ClassVar

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

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        return State(-self.optimizer.multiplier(t.step) * (grad + self.optimizer.decay_rate * y.x))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        size = -self.optimizer.multiplier(t.step) * jnp.sqrt(self.optimizer.lr)
        return State(size * self.noise.apply_root(y.x, dW))


class SecondOrderSGDSDE(OptimizerSDE):
    r"""Second-order SDE of SGD with decoupled weight decay.

    dX = −∇(hF + (η/4)h²‖∇F‖²)(X) dt − h √η (I + (η/2)h∇²F) Σ(X)^{1/2} dW,  F = f + θ‖x‖²/2,

    where ∇‖∇F‖²/2 = (∇²F)∇F and ∇²F Σ^{1/2} dW each cost one Hessian-vector product. h is constant over each step.

    With steps of Δt, η is replaced by η − Δt in both corrections, because a step of Δt has the same kind of error as
    the step of the optimizer: at Δt = η with normal noise the scheme is SGD itself.

    Source: Li, Tai, E 2017 (arXiv 1511.06251), whose diffusion is √η Σ^{1/2}: that gives weak order 2 too, but a
    stationary variance with a relative error of order η. The factor of the diffusion, derived here, removes it: on a
    quadratic of curvature λ the stationary variance is (η/2)(σ²/λ)(1 + ηλ/2) to that order, as for SGD.
    """

    uses: ClassVar[str] = "root"
    optimizer: SGD

    def __check_init__(self) -> None:
        self._require_variance()
        self._require_unbiased()

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        theta, h = self.optimizer.decay_rate, self.optimizer.multiplier(t.step)
        total = grad + theta * y.x
        if t.share == 1:
            return State(-h * total)
        along = jax.jvp(lambda x: self.problem.evaluate(x)[1], (y.x,), (total,))[1] + theta * total
        return State(-h * (total + 0.5 * (1 - t.share) * self.optimizer.lr * h * along))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        size = -self.optimizer.multiplier(t.step) * jnp.sqrt(self.optimizer.lr)
        noise = State(size * self.noise.apply_root(y.x, dW))
        if t.share == 1:
            return noise
        return self._shortened(partial(self._leading, t), State(y.x), noise, 0.5 * (1 - t.share) * self.optimizer.lr)

    def _leading(self, t: Instant, y: State) -> State:
        """−h∇F."""
        total = self.problem.evaluate(y.x)[1] + self.optimizer.decay_rate * y.x
        return State(-self.optimizer.multiplier(t.step) * total)
