"""The SDE of RMSpropW of weak order 2."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import RMSpropW, State, precondition
from sdelens.sdes._base import Instant
from sdelens.sdes._second_moment import FluctuatingSDE

__all__ = ["SecondOrderRMSpropWSDE"]


class SecondOrderRMSpropWSDE(FluctuatingSDE):
    r"""Second-order SDE of RMSprop with decoupled weight decay.

    dX = −h[p(V₊) ∇f(X₋) + 2ηρ₂ p′(V) ∇f σ² + θX₋] dt − h √η p(V) Σ^{1/2} dW₁
    dV = ρ₂[E g²(X₋) − V₋] dt + √η ρ₂ [2∇f ∘ Σ^{1/2} dW₁ + Cov(Z²)^{1/2} dW₂]

    with p(v) = 1/(√v + ε), X₋ = X − (η/2)Ẋ, V± = V ± (η/2)V̇, and leading drifts Ẋ = −h(p(V)∇f + θX),
    V̇ = ρ₂((∇f)² + diag Σ − V); θ is the decay rate per unit of time and h the schedule's multiplier, constant during
    each step.

    Derivation. For y ← y + ηH(y, g) the equation dY = [b − (η/2)(∂b)b] dt + √η Cov(H)^{1/2} dW, b = E H to O(η), has
    the first two moments of one update to O(η³), and therefore weak order 2: in the mean of the SDE's step,
    ηb̃ + (η²/2)(∂b)b + (η³/4) Cov(H):∂²b, the last term is of O(η³) (Li, Tai, E 2017, arXiv 1511.06251, for SGD). Here

    E[g p(v + ηρ₂(g² − v))] = p∇f + ηρ₂p′(E g³ − v∇f) + O(η²) = ∇f p(v + ηV̇) + 2ηρ₂p′∇fσ² + O(η²)

    for symmetric noise, and b − (η/2)(∂b)b is evaluated as b at y − (η/2)b: this keeps the mean of V positive, at the
    cost of one more gradient. The idea of including the noise of V comes from Callisti, Triggiano, Romito 2025
    (arXiv 2509.21614); the equation is derived here.

    Effects that an integrator already produces are subtracted. If V is advanced first, X moves by p of the new V: the
    covariance of V's noise with X's then contributes the term in p′, and V₊ looks ahead by less. A step of Δt has the
    same kind of error as the step of the optimizer, so η/2 is replaced by (η − Δt)/2 (`Instant.share`): at Δt = η the
    scheme ``sequential`` has the moments of the algorithm.

    With mini-batch noise the order is only 1, because of third moments, which are neglected here, and of changes of the
    variance while a cached value is used.
    """

    optimizer: RMSpropW

    def __check_init__(self) -> None:
        self._require_fourth_moment()

    def drift(self, t: Instant, y: State, grad: Array, advanced: Mapping[str, Any]) -> State:  # noqa: D102
        opt, h = self.optimizer, self.optimizer.multiplier(t.step)
        variance = self.noise.variance(y.x)
        dx = -h * (precondition(grad, y.v, opt.eps) + opt.decay_rate * y.x)
        dv = opt.rho2 * (grad**2 + variance - y.v)
        back = 0.5 * (1 - t.share) * opt.lr
        before, square = self._behind(y.x, dx, back, grad, t.share)
        toward = y.v + (opt.lr - advanced.get("v", 0.0) - back) * dv
        direction = precondition(before, toward, opt.eps)
        if "v" not in advanced:
            direction = direction + 2 * opt.lr * opt.rho2 * _slope(y.v, opt.eps) * grad * variance
        return State(
            -h * (direction + opt.decay_rate * (y.x - back * dx)),
            v=opt.rho2 * (square - y.v + back * dv),
        )

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        root, square = self._noises(y, grad, dW)
        return State(-opt.multiplier(t.step) * precondition(root, y.v, opt.eps), v=opt.rho2 * square)


def _slope(v: Array, eps: Any) -> Array:
    """The derivative of 1/(√v + ε), 0 at v = 0."""
    root = jnp.sqrt(jnp.where(v > 0, v, 1))
    return jnp.where(v > 0, -0.5 / (root * (root + eps) ** 2), 0)
