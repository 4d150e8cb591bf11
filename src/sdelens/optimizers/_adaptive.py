"""Optimizers that divide by the root of a second moment: RMSpropW and AdamW."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jax import Array

from sdelens.core import check
from sdelens.core.names import ACCUMULATOR_STARTS
from sdelens.optimizers._base import CONVERGED, DecayedOptimizer, State, floor, number, second_moment
from sdelens.optimizers.schedules import Schedule, as_schedule

if TYPE_CHECKING:
    from sdelens.noise import NoiseLaw
    from sdelens.problems import AbstractProblem

__all__ = ["AdamW", "RMSpropW"]


class RMSpropW(DecayedOptimizer):
    r"""RMSprop with decoupled weight decay.

    v ← β₂v + (1 − β₂)g²;  x ← x − ηg/(√v + ε) − ηθx, with the *new* v and ε outside the root.

    In optax's `rmsprop` ε is inside the root by default; in PyTorch's RMSprop it is outside, as here.

    Args:
        lr: η > 0.
        b2: β₂ in [0, 1), the decay of the second moment.
        eps: ε ≥ 0.
        weight_decay: θ ≥ 0.
        v0: accumulator at step 0: ``"second-moment"`` is E g² = (∇f)² + diag Σ at the start, ``"zero"`` is 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: multiplier of η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.
    """

    name: ClassVar[str] = "rmspropw"
    accumulators: ClassVar[Mapping[str, str]] = {"v": "nu"}
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    b2: float = eqx.field(default=0.99, converter=number(check.fraction, "b2"))
    eps: float = eqx.field(default=1e-8, converter=number(check.nonnegative, "eps"))
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    v0: str = eqx.field(default="second-moment", static=True)
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def __check_init__(self) -> None:
        check.choice("v0", self.v0, ACCUMULATOR_STARTS)

    @property
    def rho2(self) -> Any:
        """ρ₂ = (1 − β₂)/η, the rate at which V forgets, per unit of time."""
        return (1 - self.b2) / self.lr

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.b2, floor(self.eps), eps_in_sqrt=False, bias_correction=False)

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        if self.v0 == "zero":
            return State(x, v=jnp.zeros_like(x))
        return State(x, v=second_moment(problem, noise, x)[1])


class AdamW(DecayedOptimizer):
    r"""Adam with decoupled weight decay.

    m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²;  x ← x − η m̂/(√v̂ + ε) − ηθx, with m̂ = m/(1 − β₁ᵏ⁺¹) and
    v̂ = v/(1 − β₂ᵏ⁺¹) at step k = 0, 1, ….

    Args:
        lr: η > 0.
        b1: β₁ in [0, 1), the decay of the first moment.
        b2: β₂ in [0, 1), the decay of the second moment.
        eps: ε ≥ 0, outside the root.
        weight_decay: θ ≥ 0.
        v0: accumulators at step 0: ``"zero"`` is m = v = 0 with bias correction, as in the usual Adam;
            ``"second-moment"`` uses their stationary values at the starting point, m = ∇f and v = (∇f)² + diag
            Σ, without bias correction: both 1 − βᵏ⁺¹ are replaced by 1.
        decay: ``"coupled"`` (η multiplies θ, as in PyTorch and optax) or ``"independent"``.
        schedule: multiplier of η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.
    """

    name: ClassVar[str] = "adamw"
    accumulators: ClassVar[Mapping[str, str]] = {"m": "mu", "v": "nu", "count": "count"}
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    b1: float = eqx.field(default=0.9, converter=number(check.fraction, "b1"))
    b2: float = eqx.field(default=0.999, converter=number(check.fraction, "b2"))
    eps: float = eqx.field(default=1e-8, converter=number(check.nonnegative, "eps"))
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    v0: str = eqx.field(default="zero", static=True)
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def __check_init__(self) -> None:
        check.choice("v0", self.v0, ACCUMULATOR_STARTS)

    @property
    def rho1(self) -> Any:
        """ρ₁ = (1 − β₁)/η, the rate at which M forgets, per unit of time."""
        return (1 - self.b1) / self.lr

    @property
    def rho2(self) -> Any:
        """ρ₂ = (1 − β₂)/η, the rate at which V forgets, per unit of time."""
        return (1 - self.b2) / self.lr

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, floor(self.eps))

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        if self.v0 == "zero":
            return State(x, jnp.zeros_like(x), jnp.zeros_like(x), jnp.asarray(0, jnp.int32))
        grad, square = second_moment(problem, noise, x)
        return State(x, grad, square, jnp.asarray(CONVERGED, jnp.int32))
