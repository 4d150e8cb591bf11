"""The SDE of Adam and AdamW."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from sdelens.core import check
from sdelens.core.names import BIAS_CORRECTIONS
from sdelens.optimizers import AdamW, State, precondition
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["AdamWSDE", "bias"]


class AdamWSDE(OptimizerSDE):
    r"""SDE of Adam with decoupled weight decay.

    dX = −h (√γ₂/γ₁) P⁻¹ (M + ηρ₁(∇f − M)) dt − hθX dt
    dM = ρ₁(∇f − M) dt + √η ρ₁ Σ^{1/2} dW
    dV = ρ₂((∇f)² + diag Σ − V) dt

    with P = diag(√V) + ε√γ₂ I, ρᵢ = (1 − βᵢ)/η, θ the decay rate per unit of time and h the schedule's multiplier.
    M + ηρ₁(∇f − M) is the mean of M after the next optimizer step.

    Source: arXiv 2411.15958, where γᵢ(t) = 1 − e^{−ρᵢt}, which is singular at t = 0. Differences from the paper:

    - γᵢ = 1 − βᵢ^{k+1}, the bias correction of the algorithm, constant during optimizer step k, substeps included
      (``bias_correction="discrete"``; k continues from the ``count`` of the start). The limit η → 0 is the same and the
      error is 7-11 times smaller. With ``"exponential"``, γᵢ = 1 − e^{−(1−βᵢ)(k+1)}, the paper's value at the end of
      the step.
    - If the integrator has already advanced M by some Δt (``sequential``), the drift of X looks ahead only by the
      remaining η − Δt: at Δt = η, X moves by the new M alone, as in the algorithm; as Δt → 0, the drift becomes that of
      the paper.
    """

    optimizer: AdamW
    bias_correction: str = eqx.field(default="discrete", static=True)

    def __check_init__(self) -> None:
        check.choice("bias_correction", self.bias_correction, BIAS_CORRECTIONS)
        self._require_variance()

    def gamma(self, beta: Any, step: Array) -> Array:
        """γ after step + 1 averaged gradients, in (0, 1]."""
        return bias(beta, step, self.bias_correction)

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt = self.optimizer
        count = t.step + y.count
        gamma1 = self.gamma(opt.b1, count).astype(y.x.dtype)
        gamma2 = self.gamma(opt.b2, count).astype(y.x.dtype)
        toward = opt.rho1 * (grad - y.m)
        look_ahead = y.m + (opt.lr - t.advanced.get("m", 0.0)) * toward
        # √γ₂ P⁻¹ = 1/(√(V/γ₂) + ε)
        direction = precondition(look_ahead / gamma1, y.v / gamma2, opt.eps)
        dx = -opt.multiplier(t.step) * (direction + opt.decay_rate * y.x)
        return State(dx, m=toward, v=opt.rho2 * (grad**2 + self.noise.variance(y.x) - y.v))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        size = jnp.sqrt(self.optimizer.lr) * self.optimizer.rho1
        return State(0.0, m=size * self.noise.apply_root(y.x, dW), v=0.0)


def bias(beta: Any, step: Array, correction: str) -> Array:
    """γ after step + 1 averaged gradients, in (0, 1]."""
    steps = step.astype(jnp.result_type(float)) + 1
    rate = jnp.log(beta) if correction == "discrete" else beta - 1
    return -jnp.expm1(steps * rate)
