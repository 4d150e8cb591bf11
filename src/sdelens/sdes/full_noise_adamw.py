"""The SDE of AdamW with the noise of both accumulators in its parameters."""

from jax import Array

from sdelens.optimizers import AdamW, State
from sdelens.sdes._base import Instant
from sdelens.sdes._full_noise import FullNoiseSDE
from sdelens.sdes.adamw import AdamWSDE

__all__ = ["FullNoiseAdamWSDE"]


class FullNoiseAdamWSDE(AdamWSDE, FullNoiseSDE):
    r"""SDE of Adam with decoupled weight decay in which V has its noise, and X the noise of the new M.

    dX = −h q(M + ηρ₁(∇f − M), V) dt − h η^{3/2} ρ₁ q(Σ^{1/2} dW, V) − hθX dt
    dM = ρ₁(∇f − M) dt + √η ρ₁ Σ^{1/2} dW
    dV = ρ₂(E g² − V) dt + √η ρ₂ [2∇f ∘ Σ^{1/2} dW + Cov(Z²)^{1/2} dW₂]

    with q(m, v) = (m/γ₁)/(√(v/γ₂) + ε), E g² = (∇f)² + diag Σ, and ρᵢ, γᵢ, θ and h as in `AdamWSDE`. dW₂ is
    uncorrelated with dW for a symmetric law. For mini-batches, the noise of V has the third and fourth moments of the
    gradients of the examples.

    These are E D/η and Cov(D)/η of the update D of Adam to leading order. `AdamWSDE`, of arXiv 2411.15958, has neither
    the noise of V nor that of the new M in X. Its weak order is 1 too, but Var X is itself O(η) and both change it at
    the same order: without the noise of V its spread is too large where the gradient is not small against its noise, as
    for `FullNoiseRMSpropWSDE`; without X's share of the noise of M, the stationary variance of X is β₁² times the
    optimizer's to leading order (−19 % at β₁ = 0.9). Here Var X has a relative error of O(η).

    If the integrator has already advanced M by some Δt, η − Δt replaces η in the first line: at Δt = η with normal
    noise the scheme ``sequential`` is Adam itself. Steps from V = 0 need Δt = η.

    Source: derived here; Callisti, Triggiano, Romito 2025 (arXiv 2509.21614) also include the noise of V.
    """

    optimizer: AdamW

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        root, square = self._noises(t, y, grad, dW)
        dm, dv = opt.rho1 * root, opt.rho2 * square
        if self._is_advanced(t):
            return State(0.0, m=dm, v=dv)
        return State(-opt.multiplier(t.step) * self._direction(t, y.count, self._ahead(t) * dm, y.v), m=dm, v=dv)
