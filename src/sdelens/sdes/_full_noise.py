"""Base class of SDEs in which the second-moment accumulator has the noise of the same gradients as the parameters."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from sdelens.optimizers import AdamW, RMSpropW, State, precondition
from sdelens.sdes._base import Instant, OptimizerSDE

__all__ = ["FullNoiseSDE"]

_DELTA = 10.0
_TINY = 1e-30


class FullNoiseSDE(OptimizerSDE):
    r"""The noise of V: √η ρ₂ (g² − E g²), with g² − E g² = 2∇f∘Z + Z² − diag Σ and Z = Σ^{1/2} dW.

    The second Brownian motion, which drives Z² − diag Σ, needs no further random numbers: its increment is
    (ΔW² − Δt)/√(2Δt), uncorrelated with ΔW (`NoiseLaw.apply_root_and_square`). The integration therefore needs normal
    increments and a fixed step. At Δt = η under normal noise, V is moved by g² itself.

    In all other cases, V of a diffusion with this noise comes near 0 where 1 − β₂ is not small, which V of the
    algorithm never does. The variance of its noise is then multiplied by (1 + δ)r/(r + δ), with r = V/E g² and
    δ = 10(1 − β₂). The factor is 1 at V = E g² and tends to 1 as η → 0; near V = 0 it makes V inaccessible (Feller's
    condition holds for δ ≥ 1 − β₂ under normal noise), and it gives V the skewness to the right that averages of
    squares have.
    """

    squares_increments: ClassVar[bool] = True
    optimizer: RMSpropW | AdamW

    def __check_init__(self) -> None:
        self._require_fourth_moment()

    def positive_parts(self, t: Instant) -> Mapping[str, bool]:
        """V; where it is moved by g² itself, only rounding can make it negative."""
        return {"v": self._is_exact(t)}

    def _is_exact(self, t: Instant) -> bool:
        """Whether V is moved by g² itself."""
        return self.noise.normal and t.share == 1

    def _noises(self, t: Instant, y: State, grad: Array, dW: Array) -> tuple[Array, Array]:
        """√η Z and √η (g² − E g²)."""
        size, dt = jnp.sqrt(self.optimizer.lr), jnp.asarray(t.share * self.optimizer.lr, y.x.dtype)
        root, square = self.noise.apply_root_and_square(grad, y.x, dW, dt)
        if not self._is_exact(t):
            expected = grad**2 + self.noise.variance(y.x)
            delta = _DELTA * self.optimizer.rho2 * self.optimizer.lr
            square = square * jnp.sqrt((1 + delta) * y.v / jnp.maximum(y.v + delta * expected, _TINY))
        return size * root, size * square

    def _divided(self, numerator: Array, v: Array) -> Array:
        """numerator/(√v + ε), and 0 at v = 0, where the square root has no derivative."""
        known = v > 0
        return jnp.where(known, precondition(numerator, jnp.where(known, v, 1), self.optimizer.eps), 0)

    def _behind(self, t: Instant, x: Array, dx: Array, back: Any, grad: Array) -> tuple[Array, Array]:
        """∇f and E g² at x − back·dx; at Δt = η, where back is 0, the given gradient is used."""
        if t.share < 1:
            x = (x - back * dx).astype(x.dtype)
            grad = self.problem.evaluate(x)[1]
        return grad, grad**2 + self.noise.variance(x)

    def _require_fourth_moment(self) -> None:
        """Refuse noise whose squares have no variance."""
        self._require_variance()
        self.noise.fourth_cumulant(self.problem.start)  # raises an error that says what to use if it is not known
        if not self.noise.lacks_fourth_moment(self.problem.start):
            return
        raise ValueError(
            f"noise: {self.noise.describe()['name']} noise has no finite fourth moment here, so g² has no variance "
            f"and an SDE of {self.optimizer.name} with the noise of V does not exist. Use the model 'sde', which "
            "leaves the noise of V out."
        )
