"""Optimizers with one first moment: Momentum, and those that move by the sign of it, Signum and Lion."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

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

__all__ = ["Lion", "Momentum", "Signum"]


class Momentum(DecayedOptimizer):
    r"""SGD with damped momentum and decoupled weight decay.

    m ← β₁m + (1 − β₁)g;  x ← x − ηd − ηθx, where d is the new m, or for Nesterov's form d = β₁m + (1 − β₁)g.

    PyTorch and optax do not damp: their SGD(lr=a, momentum=μ) has the buffer u ← μu + g and x ← x − au. As
    u = m/(1 − μ), it is this optimizer with η = a/(1 − μ), the effective learning rate, and β₁ = μ:
    `Momentum.undamped`. Time t = kη is then that of plain SGD. PyTorch's weight_decay is coupled to the gradient, not
    decoupled as here.

    Args:
        lr: η > 0.
        b1: β₁ in [0, 1), the decay of the first moment.
        nesterov: Nesterov's form.
        weight_decay: θ ≥ 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: multiplier of η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    m starts at 0, without bias correction, or from the m of a `State`.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.

    Examples:
        >>> import sdelens as sl
        >>> optimizer = sl.Momentum.undamped(lr=0.01, momentum=0.9)
        >>> round(optimizer.lr, 6), optimizer.b1
        (0.1, 0.9)
    """

    name: ClassVar[str] = "momentum"
    accumulators: ClassVar[Mapping[str, str]] = {"m": "trace"}
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    b1: float = eqx.field(default=0.9, converter=number(check.fraction, "b1"))
    nesterov: bool = eqx.field(default=False, static=True)
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def __check_init__(self) -> None:
        if not isinstance(self.nesterov, bool):
            raise TypeError(f"nesterov: got {self.nesterov!r}; give True or False.")

    @classmethod
    def undamped(cls, lr: float, momentum: float = 0.9, nesterov: bool = False, **options: Any) -> "Momentum":
        """The algorithm that PyTorch and optax call SGD(lr, momentum): with η = lr/(1 − momentum).

        Args:
            lr: a > 0, the multiplier of the undamped buffer.
            momentum: μ in [0, 1).
            nesterov: Nesterov's form.
            **options: further arguments of `Momentum`; a coupled weight_decay is multiplied by η = lr/(1 − momentum).
        """
        momentum = check.fraction("momentum", momentum)
        return cls(check.positive("lr", lr) / (1 - momentum), momentum, nesterov=nesterov, **options)

    @property
    def rho1(self) -> Any:
        """ρ₁ = (1 − β₁)/η, the rate at which M forgets, per unit of time."""
        return (1 - self.b1) / self.lr

    def _direction(self) -> optax.GradientTransformation:
        return optax.chain(optax.scale(1 - self.b1), optax.trace(self.b1, self.nesterov))

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return State(x, jnp.zeros_like(x))


class Signum(DecayedOptimizer):
    r"""Descent by the sign of a momentum, with decoupled weight decay.

    m ← β₁m + (1 − β₁)g;  x ← x − η sign(m) − ηθx, with the new m and sign(0) = 0; β₁ = 0 is `SignSGD`.

    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar 2018 (arXiv 1802.04434).

    Args and errors as for `Momentum`, without ``nesterov``.
    """

    name: ClassVar[str] = "signum"
    accumulators: ClassVar[Mapping[str, str]] = {"m": "trace"}
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    b1: float = eqx.field(default=0.9, converter=number(check.fraction, "b1"))
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    @property
    def memory(self) -> Any:
        """Decay of m."""
        return self.b1

    def _direction(self) -> optax.GradientTransformation:
        return optax.chain(optax.scale(1 - self.b1), optax.trace(self.b1), optax.scale_by_sign())

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return State(x, jnp.zeros_like(x))


class Lion(DecayedOptimizer):
    r"""Lion: descent by the sign of a momentum with extra weight on the newest gradient.

    x ← x − η sign(β₁m + (1 − β₁)g) − ηθx;  m ← β₂m + (1 − β₂)g, with the old m in the sign.

    Source: Chen et al. 2023 (arXiv 2302.06675).

    `at_lr` keeps ρ = (1 − β₂)/η, the rate at which m forgets, and β₁ itself, which only weights g in the sign.

    Args:
        lr: η > 0.
        b1: β₁ in [0, 1), the weight of m in the sign.
        b2: β₂ in [0, 1), the decay of m.
        weight_decay: θ ≥ 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: multiplier of η, as for `Momentum`.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.
    """

    name: ClassVar[str] = "lion"
    accumulators: ClassVar[Mapping[str, str]] = {"m": "mu"}
    memories: ClassVar[tuple[str, ...]] = ("b2",)
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    b1: float = eqx.field(default=0.9, converter=number(check.fraction, "b1"))
    b2: float = eqx.field(default=0.99, converter=number(check.fraction, "b2"))
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    @property
    def memory(self) -> Any:
        """Decay of m."""
        return self.b2

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return State(x, jnp.zeros_like(x))
