"""The SDE of SGD with momentum."""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import Momentum, State
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["MomentumSDE"]


class MomentumSDE(OptimizerSDE):
    r"""SDE of SGD with damped momentum and decoupled weight decay.

    dM = ρ(∇f − M) dt + √η ρ Σ^{1/2} dW
    dX = −h(M + ηρ(∇f − M) + θX) dt, and for Nesterov momentum
    dX = −h(β(M + ηρ(∇f − M)) + ηρ∇f + θX) dt − h√η ηρ Σ^{1/2} dW

    with β = 1 − ηρ, θ the decay rate per unit of time, h the schedule's multiplier, and the same W throughout.

    Derivation. One update moves m by ηρ(g − m), whose mean divided by η is ρ(∇f − m) and whose covariance divided by η
    is ηρ²Σ. It moves x by −ηh times the new m, whose mean is m + ηρ(∇f − m), or, for Nesterov momentum, times βm + ηρg
    with the new m. All increments are O(η), so these are the drift and diffusion of a weak approximation of order 1
    (Li, Tai, E 2017, arXiv 1511.06251). The terms with ηρ are of higher order, but are kept: as for Adam, X looks ahead
    by one step minus the time by which the integrator has advanced M (`AdamWSDE`). With Gaussian noise the scheme
    ``sequential`` at Δt = η then *is* the algorithm, also for Nesterov momentum.
    """

    uses: ClassVar[str] = "root"
    optimizer: Momentum

    def __check_init__(self) -> None:
        self._require_variance()

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        opt = self.optimizer
        toward = opt.rho1 * (grad - y.m)
        direction = y.m + (opt.lr - t.advanced.get("m", 0.0)) * toward
        if opt.nesterov:
            direction = opt.b1 * direction + (1 - opt.b1) * grad
        return State(-opt.multiplier(t.step) * (direction + opt.decay_rate * y.x), m=toward)

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        root = jnp.sqrt(opt.lr) * self.noise.apply_root(y.x, dW)
        return State(-opt.multiplier(t.step) * (1 - opt.b1) * root if opt.nesterov else 0.0, m=opt.rho1 * root)
