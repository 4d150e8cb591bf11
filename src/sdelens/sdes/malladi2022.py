"""The earlier SDEs of RMSprop and Adam, which serve as a baseline."""

from typing import Any

from jax import Array

from sdelens.core.random import Stream
from sdelens.optimizers import State
from sdelens.sdes._base import SDE, Instant
from sdelens.sdes.adamw import AdamWSDE
from sdelens.sdes.rmspropw import RMSpropWSDE

__all__ = ["Malladi2022SDE"]


class Malladi2022SDE(SDE):
    r"""SDEs of RMSprop and Adam by Malladi, Lyu, Panigrahi, Arora 2022 (arXiv 2205.10287), in the time t = kη.

    They equal the later SDEs of arXiv 2411.15958 except that the accumulator depends on the noise alone,

    dV = ρ₂(diag Σ − V) dt,

    because they assume that the noise dominates the gradient; and that, for Adam, X moves by M alone, without
    ηρ₁(∇f − M).

    Differences from the paper: its SDEs have no decoupled decay and no schedule. Here both have the term −θX dt and the
    multiplier of the later SDEs, so that a comparison shows only the effect of these changes; and time is rescaled to
    t = kη.

    Args:
        later: the later SDE, `RMSpropWSDE` or `AdamWSDE`, whose drift of V is replaced.
    """

    later: RMSpropWSDE | AdamWSDE

    def init(self, x: Array) -> State:  # noqa: D102
        return self.later.init(x)

    def evaluate(self, x: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.later.evaluate(x)

    @property
    def expensive_gradient(self) -> bool:  # noqa: D102
        return self.later.expensive_gradient

    @property
    def noise_shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.later.noise_shape

    @property
    def cache_steps(self) -> int:  # noqa: D102
        return self.later.cache_steps

    def compute_cache(self, x: Array, grad: Array, stream: Stream) -> Any:  # noqa: D102
        return self.later.compute_cache(x, grad, stream)

    def with_cache(self, found: Any) -> "Malladi2022SDE":  # noqa: D102
        return Malladi2022SDE(self.later.with_cache(found))

    def at_step(self, k: Array) -> "Malladi2022SDE":  # noqa: D102
        return Malladi2022SDE(self.later.at_step(k))

    def mean_gradient(self, x: Array, grad: Array) -> Array:  # noqa: D102
        return self.later.mean_gradient(x, grad)

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        optimizer = self.later.optimizer
        # With M marked as advanced by a whole step, the later drift adds no look-ahead.
        drift = self.later.drift(t._replace(advanced={**t.advanced, "m": optimizer.lr}), y, grad)
        return drift._replace(v=optimizer.rho2 * (self.later.noise.variance(y.x) - y.v))

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        return self.later.apply_diffusion(t, y, grad, dW)
