"""Gradient descent: SGD."""

from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import optax
from jax import Array

from sdelens.core import check
from sdelens.optimizers._base import DecayedOptimizer, State, number
from sdelens.optimizers.schedules import Schedule, as_schedule

if TYPE_CHECKING:
    from sdelens.noise import NoiseLaw
    from sdelens.problems import AbstractProblem

__all__ = ["SGD"]


class SGD(DecayedOptimizer):
    r"""Stochastic gradient descent with decoupled weight decay: x ← x − ηg − ηθx.

    Args:
        lr: η > 0.
        weight_decay: θ ≥ 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: multiplier of η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.
    """

    name: ClassVar[str] = "sgd"
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def _direction(self) -> optax.GradientTransformation:
        return optax.identity()

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return State(x)
