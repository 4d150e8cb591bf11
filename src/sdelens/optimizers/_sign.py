"""Descent by signs: SignSGD."""

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

__all__ = ["SignSGD"]


class SignSGD(DecayedOptimizer):
    r"""Sign descent with decoupled weight decay: x ← x − η sign(g) − ηθx, with sign(0) = 0.

    Args and errors as for `SGD`.
    """

    name: ClassVar[str] = "signsgd"
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_sign()

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return State(x)
