"""Base class of SDEs that include the noise of the second-moment accumulator."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from sdelens.core import check
from sdelens.optimizers import AdamW, RMSpropW, State
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["FluctuatingSDE"]


class FluctuatingSDE(OptimizerSDE):
    r"""The noise of V: √η ρ₂ (2∇f ∘ Z + (Z² − σ²)), Z = Σ^{1/2} dW₁, Z² − σ² = Cov(Z²)^{1/2} dW₂.

    For symmetric noise Z² is uncorrelated with Z, so W₂ is independent of W₁; the variance of Z² is E Z⁴ − σ⁴, which is
    2σ⁴ for normal noise. Mini-batch noise is treated as normal, and its squares as independent.

    V is positive, and normal noise would let it cross 0: an integrator therefore multiplies it by a log-normal factor
    that gives the mean and variance of the step (`SDE.spread`). As Δt → 0, every law with this mean and variance leads
    to the same equation, away from V = 0; at Δt = η, the law of β₂V + (1 − β₂)g² is also positive and skewed to the
    right.
    """

    root_first: ClassVar[bool] = True
    optimizer: RMSpropW | AdamW

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the Brownian motions of the gradient noise and of its squares."""
        return (math.prod(self.noise.noise_shape(self.problem.dim)) + self.problem.dim,)

    def spread(self, t: Instant, y: State, grad: Array) -> Mapping[str, Array]:
        """Variance per unit of time of V: ηρ₂²(4(∇f)²σ² + Var Z²)."""
        variance = 4 * grad**2 * self.noise.variance(y.x) + self.noise.square_variance(y.x)
        return {"v": self.optimizer.lr * self.optimizer.rho2**2 * variance}

    def _noises(self, y: State, grad: Array, dW: Array) -> tuple[Array, Array]:
        """√η Z and √η (2∇f ∘ Z + Z² − σ²) for an increment dW."""
        size = jnp.sqrt(self.optimizer.lr)
        own, other = self.noise.split_root(y.x, dW)
        return size * own, size * (2 * grad * own + self.noise.apply_square_root(y.x, other))

    def _behind(self, x: Array, dx: Array, back: Any, grad: Array, share: float) -> tuple[Array, Array]:
        """∇f and E g² at x − back·dx; at Δt = η, where back is 0, the given gradient is used."""
        if share < 1:
            x = (x - back * dx).astype(x.dtype)
            grad = self.problem.evaluate(x)[1]
        return grad, grad**2 + self.noise.variance(x)

    def _require_fourth_moment(self) -> None:
        """Refuse noise whose squares have no variance."""
        self._require_variance()
        cumulant = self.noise.fourth_cumulant(self.problem.start)
        if check.is_traced(cumulant) or bool(jnp.isfinite(cumulant).all()):
            return
        raise ValueError(
            f"noise: {self.noise.describe()['name']} noise has no finite fourth moment here, and g² no variance, so "
            f"that the second-order SDE of {self.optimizer.name} does not exist. Use the model 'sde', which leaves the "
            "noise of V out."
        )
