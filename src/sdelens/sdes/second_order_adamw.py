"""The SDE of AdamW of weak order 2."""

from functools import partial
from typing import Any

import jax
from jax import Array

from sdelens.optimizers import AdamW, State
from sdelens.sdes._base import Instant
from sdelens.sdes._full_noise import FullNoiseSDE
from sdelens.sdes.adamw import AdamWSDE

__all__ = ["SecondOrderAdamWSDE"]


class SecondOrderAdamWSDE(FullNoiseSDE, AdamWSDE):
    r"""Second-order SDE of Adam with decoupled weight decay.

    dX = −h[q(M₊, V₊) + θX₋] dt + dN_x − (η/2)(∂b dN)_x
    dM = ρ₁[∇f(X₋) − M₋] dt + dN_m − (η/2)(∂b dN)_m
    dV = ρ₂[E g²(X₋) − V₋] dt + dN_v − (η/2)(∂b dN)_v
    dN_m = √η ρ₁ Σ^{1/2} dW,  dN_v = √η ρ₂ [2∇f ∘ Σ^{1/2} dW + Cov(Z²)^{1/2} dW₂],  dN_x = −h η (∂q)(dN_m, dN_v)

    with q(m, v) = (m/γ₁)/(√(v/γ₂) + ε), γᵢ as in `AdamWSDE`, constant during each step, X₋ = X − (η/2)Ẋ,
    M± = M ± (η/2)Ṁ, V± = V ± (η/2)V̇, and the leading drift b = (Ẋ, Ṁ, V̇) with Ẋ = −h(q(M, V) + θX), Ṁ = ρ₁(∇f − M),
    V̇ = ρ₂((∇f)² + diag Σ − V); dW₂ is as in `FullNoiseAdamWSDE`.

    Derivation: as for `SecondOrderRMSpropWSDE`. X moves by q at m and v after the next step, with mean
    q(M + ηṀ, V + ηV̇) to O(η), and b − (η/2)(∂b)b is b at y − (η/2)b. The noise of X is that of the new M and V, and the
    terms (η/2)(∂b)dN cost one Hessian-vector product; both are not needed for order 2, but with them the stationary
    variance of X, which is O(η), is correct to O(η²). The equation is derived here.

    With steps of Δt, η/2 is replaced by (η − Δt)/2, and there is no look-ahead for components that the integrator has
    already advanced: at Δt = η with normal noise, the scheme ``sequential`` is Adam itself. If V starts at 0, the order
    is lower.
    """

    optimizer: AdamW

    def __check_init__(self) -> None:
        self._require_unbiased()

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt, h = self.optimizer, self.optimizer.multiplier(t.step)
        back = 0.5 * (1 - t.share) * opt.lr
        dx = -h * (self._direction(t, y.count, y.m, y.v) + opt.decay_rate * y.x)
        dm = opt.rho1 * (grad - y.m)
        dv = opt.rho2 * (grad**2 + self.noise.variance(y.x) - y.v)
        before, square = self._behind(t, y.x, dx, back, grad)
        ahead_m, ahead_v = self._ahead(t), self._ahead_of_v(t)
        m, v = y.m + (ahead_m - back) * dm, y.v + (ahead_v - back) * dv
        return State(
            -h * (self._direction(t, y.count, m, v) + opt.decay_rate * (y.x - back * dx)),
            m=opt.rho1 * (before - y.m + back * dm),
            v=opt.rho2 * (square - y.v + back * dv),
        )

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        root, square = self._noises(t, y, grad, dW)
        dm, dv = opt.rho1 * root, opt.rho2 * square
        ahead_m, ahead_v = self._ahead(t), self._ahead_of_v(t)
        along = jax.jvp(partial(self._direction, t, y.count), (y.m, y.v), (ahead_m * dm, ahead_v * dv))[1]
        noise = State(-opt.multiplier(t.step) * along, m=dm, v=dv)
        if t.share == 1:
            return noise
        state = State(y.x, y.m, y.v)
        return self._shortened(partial(self._leading, t, y.count), state, noise, 0.5 * (1 - t.share) * opt.lr)

    def _ahead_of_v(self, t: Instant) -> Any:
        """η minus the time by which V has been advanced."""
        return self.optimizer.lr - t.advanced.get("v", 0.0)

    def _leading(self, t: Instant, count: Any, y: State) -> State:
        """The leading drift b."""
        opt, grad = self.optimizer, self.problem.evaluate(y.x)[1]
        dx = self._direction(t, count, y.m, y.v) + opt.decay_rate * y.x
        square = grad**2 + self.noise.variance(y.x)
        return State(-opt.multiplier(t.step) * dx, m=opt.rho1 * (grad - y.m), v=opt.rho2 * (square - y.v))
