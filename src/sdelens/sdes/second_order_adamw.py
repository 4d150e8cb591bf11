"""The SDE of AdamW of weak order 2."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
from jax import Array

from sdelens.core import check
from sdelens.core.names import BIAS_CORRECTIONS
from sdelens.optimizers import AdamW, State, precondition
from sdelens.sdes._base import Instant
from sdelens.sdes._second_moment import FluctuatingSDE
from sdelens.sdes.adamw import bias

__all__ = ["SecondOrderAdamWSDE"]


class SecondOrderAdamWSDE(FluctuatingSDE):
    r"""Second-order SDE of Adam with decoupled weight decay.

    dX = −h[q(M₊, V₊) + θX₋] dt − h (η/2) q(√η ρ₁ Σ^{1/2} dW₁, V)
    dM = ρ₁[∇f(X₋) − M₋] dt + √η ρ₁ Σ^{1/2} dW₁
    dV = ρ₂[E g²(X₋) − V₋] dt + √η ρ₂ [2∇f ∘ Σ^{1/2} dW₁ + Cov(Z²)^{1/2} dW₂]

    with q(m, v) = (m/γ₁)/(√(v/γ₂) + ε), γᵢ as in `AdamWSDE`, constant during each step, X₋ = X − (η/2)Ẋ,
    M± = M ± (η/2)Ṁ, V± = V ± (η/2)V̇, and leading drifts Ẋ = −h(q(M, V) + θX), Ṁ = ρ₁(∇f − M),
    V̇ = ρ₂((∇f)² + diag Σ − V).

    Derivation: as for `SecondOrderRMSpropWSDE`. X moves by q at m and v after the next step, with mean
    q(M + ηṀ, V + ηV̇) to O(η), and b − (η/2)(∂b)b is b at y − (η/2)b. The noise of X is that of the new M; its
    covariance with M is of third order in η and not needed for order 2, but with it the stationary variance of X, which
    is O(η), is correct to O(η²). Callisti, Triggiano, Romito 2025 (arXiv 2509.21614) also include the noise of V; the
    equation is derived here.

    With steps of Δt, η/2 is replaced by (η − Δt)/2, and there is no look-ahead for components that the integrator has
    already advanced: at Δt = η with ``sequential``, it is the scheme of the first-order SDE plus the noise of V. If V
    starts at 0, the order is lower.
    """

    optimizer: AdamW
    bias_correction: str = eqx.field(default="discrete", static=True)

    def __check_init__(self) -> None:
        check.choice("bias_correction", self.bias_correction, BIAS_CORRECTIONS)
        self._require_fourth_moment()

    def drift(self, t: Instant, y: State, grad: Array, advanced: Mapping[str, Any]) -> State:  # noqa: D102
        opt, h = self.optimizer, self.optimizer.multiplier(t.step)
        back = 0.5 * (1 - t.share) * opt.lr
        dx = -h * (self._direction(t, y, y.m, y.v) + opt.decay_rate * y.x)
        dm = opt.rho1 * (grad - y.m)
        dv = self._toward(y, grad)
        before, square = self._behind(y.x, dx, back, grad, t.share)
        m = y.m + (opt.lr - advanced.get("m", 0.0) - back) * dm
        v = y.v + (opt.lr - advanced.get("v", 0.0) - back) * dv
        return State(
            -h * (self._direction(t, y, m, v) + opt.decay_rate * (y.x - back * dx)),
            m=opt.rho1 * (before - y.m + back * dm),
            v=opt.rho2 * (square - y.v + back * dv),
        )

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        root, square = self._noises(y, grad, dW)
        back = 0.5 * (1 - t.share) * opt.lr
        noise = -opt.multiplier(t.step) * back * self._direction(t, y, opt.rho1 * root, y.v)
        return State(noise, m=opt.rho1 * root, v=opt.rho2 * square)

    def _toward(self, y: State, grad: Array) -> Array:
        """V̇."""
        return self.optimizer.rho2 * (grad**2 + self.noise.variance(y.x) - y.v)

    def _direction(self, t: Instant, y: State, m: Array, v: Array) -> Array:
        """q(m, v)."""
        opt, count = self.optimizer, t.step + y.count
        gamma1, gamma2 = (bias(b, count, self.bias_correction).astype(y.x.dtype) for b in (opt.b1, opt.b2))
        return precondition(m / gamma1, v / gamma2, opt.eps)
