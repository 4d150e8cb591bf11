"""Division by the root of a sum of squares: Adagrad."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

import equinox as eqx
import jax.numpy as jnp
import optax
from jax import Array

from sdelens.core import check
from sdelens.optimizers._base import DecayedOptimizer, State, number
from sdelens.optimizers.schedules import Schedule, as_schedule

if TYPE_CHECKING:
    from sdelens.noise import NoiseLaw
    from sdelens.problems import AbstractProblem

__all__ = ["Adagrad"]


class Adagrad(DecayedOptimizer):
    r"""Adagrad with decoupled weight decay.

    v ← v + g²;  x ← x − ηg/√(v + ε) − ηθx, with the *new* v and ε inside the root (0 where v = 0), as in optax.
    PyTorch's Adagrad has ε outside the root and starts v at 0.

    Source: Duchi, Hazan, Singer 2011 (*Adaptive Subgradient Methods for Online Learning and Stochastic Optimization*).

    Args:
        lr: η > 0.
        initial_accumulator: v ≥ 0 at the start; a `State` may give a different value for every coordinate.
        eps: ε ≥ 0.
        weight_decay: θ ≥ 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: multiplier of η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.
    """

    name: ClassVar[str] = "adagrad"
    accumulators: ClassVar[Mapping[str, str]] = {"v": "sum_of_squares"}
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    initial_accumulator: float = eqx.field(default=0.1, converter=number(check.nonnegative, "initial_accumulator"))
    eps: float = eqx.field(default=1e-7, converter=number(check.nonnegative, "eps"))
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def at_lr(self, lr: float) -> Self:
        """Accept only the current lr: v grows by g² per step for any η, so no limit η → 0 at fixed time exists.

        Raises:
            ValueError: at any other learning rate.
        """
        if check.positive("lr", lr) == self.lr:
            return self
        raise ValueError(
            f"lr: got {lr:g} for an Adagrad with lr = {self.lr:g}. Its sum of squares grows by g² per step at every "
            "lr, so Adagrad has no common limit in time t = k lr as lr → 0. Build an sl.Adagrad for each lr, and "
            "compare each with its SDE by sl.compare."
        )

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_rss(self.initial_accumulator, self.eps)

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return State(x, v=jnp.full_like(x, self.initial_accumulator))
