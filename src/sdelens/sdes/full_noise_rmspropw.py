"""The SDE of RMSpropW with the noise of the second-moment accumulator."""

from jax import Array

from sdelens.optimizers import RMSpropW, State, precondition
from sdelens.sdes._base import Instant
from sdelens.sdes._full_noise import FullNoiseSDE
from sdelens.sdes.rmspropw import RMSpropWSDE

__all__ = ["FullNoiseRMSpropWSDE"]


class FullNoiseRMSpropWSDE(RMSpropWSDE, FullNoiseSDE):
    r"""SDE of RMSprop with decoupled weight decay in which V has the noise of the squared gradients.

    dX = −h P⁻¹(∇f dt + √η Σ^{1/2} dW) − hθX dt
    dV = ρ₂(E g² − V) dt + √η ρ₂ [2∇f ∘ Σ^{1/2} dW + Cov(Z²)^{1/2} dW₂]

    with P = diag(√V) + εI, ρ₂ = (1 − β₂)/η, E g² = (∇f)² + diag Σ, θ the decay rate per unit of time and h the
    schedule's multiplier. dW₂ is uncorrelated with dW for a symmetric law. For mini-batches, the noise of V has the
    third and fourth moments of the gradients of the examples.

    The SDE of arXiv 2411.15958 is the same without the noise of V. It has the same weak order, 1, but Var X is itself
    O(η), and the noise of V changes it at the same order: for memories that are short in comparison with the run,
    normal noise and s = |∂f|/σ, the standard deviation of that SDE is (1 + s²)/√(1 + s²/2) times the optimizer's at
    every learning rate. With the noise of V, Var X has a relative error of O(η).

    At Δt = η with normal noise, the scheme ``sequential`` is RMSprop itself. Steps from V = 0 need Δt = η.

    Source: derived here; Callisti, Triggiano, Romito 2025 (arXiv 2509.21614) also include the noise of V.
    """

    optimizer: RMSpropW

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        opt = self.optimizer
        root, square = self._noises(t, y, grad, dW)
        return State(-opt.multiplier(t.step) * precondition(root, y.v, opt.eps), v=opt.rho2 * square)
