"""The SDE of RMSpropW of weak order 2."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import RMSpropW, State
from sdelens.sdes._base import Instant
from sdelens.sdes._full_noise import FullNoiseSDE

__all__ = ["SecondOrderRMSpropWSDE"]


class SecondOrderRMSpropWSDE(FullNoiseSDE):
    r"""Second-order SDE of RMSprop with decoupled weight decay.

    dX = −h[p(V₊) ∇f(X₋) + 2ηρ₂ p′(V) ∇f σ² + θX₋] dt + dN_x − (η/2)(∂b dN)_x
    dV = ρ₂[E g²(X₋) − V₋] dt + dN_v − (η/2)(∂b dN)_v
    dN_v = √η ρ₂ [2∇f ∘ Σ^{1/2} dW + Cov(Z²)^{1/2} dW₂],  dN_x = −h[√η p(V) Σ^{1/2} dW + η p′(V) ∇f ∘ dN_v]

    with p(v) = 1/(√v + ε), X₋ = X − (η/2)Ẋ, V± = V ± (η/2)V̇, and the leading drift b = (Ẋ, V̇) with
    Ẋ = −h(p(V)∇f + θX), V̇ = ρ₂((∇f)² + diag Σ − V); dW₂ is as in `FullNoiseRMSpropWSDE`, θ is the decay rate per unit
    of time and h the schedule's multiplier, constant during each step.

    Derivation. For y ← y + ηH(y, g) the equation dY = [b − (η/2)(∂b)b] dt + √η Cov(H)^{1/2} dW, b = E H to O(η), has
    the first two moments of one update to O(η³), and therefore weak order 2: in the mean of the SDE's step,
    ηb̃ + (η²/2)(∂b)b + (η³/4) Cov(H):∂²b, the last term is of O(η³) (Li, Tai, E 2017, arXiv 1511.06251, for SGD). Here

    E[g p(v + ηρ₂(g² − v))] = p∇f + ηρ₂p′(E g³ − v∇f) + O(η²) = ∇f p(v + ηV̇) + 2ηρ₂p′∇fσ² + O(η²)

    for symmetric noise, and b − (η/2)(∂b)b is evaluated as b at y − (η/2)b: this keeps the mean of V positive, at the
    cost of one more gradient. The noise of X includes that of the new V, by which X moves. The terms (η/2)(∂b)dN, for
    one Hessian-vector product, are not needed for order 2, but the stationary variance of X, which is O(η), has a
    relative error of order η without them. The equation is derived here.

    Effects that an integrator already produces are subtracted. If V is advanced first, X moves by p of the new V: the
    covariance of V's noise with X's then contributes the terms in p′, and V₊ looks ahead by less. A step of Δt has the
    same kind of error as the step of the optimizer, so η/2 is replaced by (η − Δt)/2 (`Instant.share`): at Δt = η the
    scheme ``sequential`` has the moments of the algorithm.

    With mini-batch noise the order is only 1, because of E Z³, which is neglected in the drift, and of changes of the
    variance while a cached value is used.
    """

    optimizer: RMSpropW

    def __check_init__(self) -> None:
        self._require_unbiased()

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt, h = self.optimizer, self.optimizer.multiplier(t.step)
        variance = self.noise.variance(y.x)
        dx = -h * (self._divided(grad, y.v) + opt.decay_rate * y.x)
        dv = opt.rho2 * (grad**2 + variance - y.v)
        back = 0.5 * (1 - t.share) * opt.lr
        before, square = self._behind(t, y.x, dx, back, grad)
        toward = y.v + (self._ahead(t) - back) * dv
        direction = self._divided(before, toward)
        direction = direction + self._bent(grad, y.v, 2 * self._ahead(t) * opt.rho2 * variance)
        return State(
            -h * (direction + opt.decay_rate * (y.x - back * dx)),
            v=opt.rho2 * (square - y.v + back * dv),
        )

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        root, square = self._noises(t, y, grad, dW)
        fluctuation = opt.rho2 * square
        dx = self._divided(root, y.v) + self._bent(grad, y.v, self._ahead(t) * fluctuation)
        noise = State(-opt.multiplier(t.step) * dx, v=fluctuation)
        if t.share == 1:
            return noise
        return self._shortened(partial(self._leading, t), State(y.x, v=y.v), noise, 0.5 * (1 - t.share) * opt.lr)

    def _ahead(self, t: Instant) -> Any:
        """η minus the time by which V has been advanced."""
        return self.optimizer.lr - t.advanced.get("v", 0.0)

    def _leading(self, t: Instant, y: State) -> State:
        """The leading drift b."""
        opt, grad = self.optimizer, self.problem.evaluate(y.x)[1]
        dx = -opt.multiplier(t.step) * (self._divided(grad, y.v) + opt.decay_rate * y.x)
        return State(dx, v=opt.rho2 * (grad**2 + self.noise.variance(y.x) - y.v))

    def _bent(self, grad: Array, v: Array, change: Array) -> Array:
        """p′(v) ∇f times a change of v, 0 at v = 0; p′ = −p²/(2√v) itself may exceed what float32 can hold."""
        root = jnp.sqrt(jnp.where(v > 0, v, 1))
        return -0.5 * self._divided(grad, v) * self._divided(change / root, v)
