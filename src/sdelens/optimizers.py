"""Optimizers as frozen specifications: one object from which everything else is derived.

The discrete run (`to_optax`), the initial state, the SDEs, and whatever else knows an optimizer read the same object,
so they cannot disagree. The numbers are pytree leaves: a change of the learning rate compiles nothing again.
Time is t = kη at step k, with η = `lr`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
import optax
from jax import Array

from sdelens import _check
from sdelens._names import ACCUMULATOR_STARTS, DECAYS
from sdelens.schedules import Schedule, as_schedule

if TYPE_CHECKING:
    from sdelens.noise import AbstractNoise
    from sdelens.problems import AbstractProblem

__all__ = ["CONVERGED", "SGD", "AdamW", "Optimizer", "RMSpropW", "SignSGD", "State"]

CONVERGED = 2**30
"""Updates after which no bias is left to correct for any decay that float32 tells from 1."""


class State(NamedTuple):
    """State of an optimizer or of its SDE, each component of shape (d,), or (d, P) for P paths.

    As a `start`, each part is a flat vector or a pytree like the parameters: ``State(x, m, v, count)`` with optax's
    ``mu``, ``nu`` and ``count``, or PyTorch's ``exp_avg``, ``exp_avg_sq`` and ``step``; x None is the problem's start.

    Attributes:
        x: parameters.
        m: first-moment accumulator, None where the optimizer has none.
        v: second-moment accumulator, None where the optimizer has none.
        count: number of gradients m and v had averaged at step 0, shared by all paths; Adam's bias correction goes by
            it. None where the optimizer corrects none.
        found: what an integrator keeps of the noise's law for some steps (`AbstractNoise.survey`), None elsewhere.
    """

    x: Any
    m: Any = None
    v: Any = None
    count: Any = None
    found: Any = None


class Optimizer(eqx.Module):
    """What all specifications share: learning rate η, decoupled decay θ, and a schedule h.

    One step is x ← x − ηhₖ·direction − decay·x, where the decay is ηhₖθ if `decay` is ``"coupled"`` (PyTorch and optax)
    and hₖθ if ``"independent"``.
    """

    name: eqx.AbstractClassVar[str]
    lr: eqx.AbstractVar[float]
    weight_decay: eqx.AbstractVar[float]
    decay: eqx.AbstractVar[str]
    schedule: eqx.AbstractVar[Schedule | None]

    def __check_init__(self) -> None:
        _check.choice("decay", self.decay, DECAYS)

    @abc.abstractmethod
    def _direction(self) -> optax.GradientTransformation:
        """The optax transformation of the gradient before decay and learning rate."""

    @abc.abstractmethod
    def initial_state(self, problem: "AbstractProblem", noise: "AbstractNoise", x: Array) -> State:
        """State at step 0 of paths at x, each component of its shape, (d,) or (d, P)."""

    def at_lr(self, lr: float) -> Self:
        """The same optimizer in continuous time at another learning rate.

        ρ = (1 − β)/η, the decay θ per unit of time, ε, and the schedule as a function of t = kη are kept: the family of
        which an SDE is the limit as η → 0.

        Raises:
            ValueError: if ηρ > 1, so that a β would be negative; the message names the largest legal η.
        """
        lr = _check.positive("lr", lr)
        ratio = lr / self.lr
        changed: dict[str, Any] = {"lr": lr}
        for name in ("b1", "b2"):
            if hasattr(self, name):
                forgets = (1 - getattr(self, name)) * ratio
                if 1 < forgets < 1 + 1e-9:  # rounding
                    forgets = 1.0
                if forgets > 1:
                    raise ValueError(
                        f"lr: got {lr:g}, at which {name} = {1 - forgets:.3g} is negative; with (1 - {name})/lr = "
                        f"{forgets / lr:g} held, lr may be at most {lr / forgets:g}."
                    )
                changed[name] = 1 - forgets
        if self.decay == "independent":
            changed["weight_decay"] = self.weight_decay * ratio
        if self.schedule is not None:
            changed["schedule"] = self.schedule.stretched(1 / ratio)
        return dataclasses.replace(self, **changed)

    @property
    def decay_rate(self) -> Any:
        """Rate of decay per unit of time t = kη: θ if coupled, θ/η if independent."""
        return self.weight_decay if self.decay == "coupled" else self.weight_decay / self.lr

    def multiplier(self, step: Any) -> Any:
        """Schedule h at a step: 1 without a schedule."""
        return 1.0 if self.schedule is None else self.schedule(step, self.lr)

    def to_optax(self) -> optax.GradientTransformation:
        """The optimizer as an optax transformation; `update` needs the parameters. Accumulators start at 0."""
        rate: Any = self.lr
        if self.schedule is not None:
            rate = lambda count: self.lr * self.multiplier(count)  # noqa: E731
        decay = optax.add_decayed_weights(self.decay_rate)
        return optax.chain(self._direction(), decay, optax.scale_by_learning_rate(rate))

    def optax_state(self, state: State) -> optax.OptState:
        """The state of `to_optax()` at step 0 with the accumulators of `state`, for example `initial_state`'s."""
        inner = self.to_optax().init(state.x)
        parts = {"mu": state.m, "nu": state.v, "count": state.count}
        # The count of the moments, not that of a schedule.
        return optax.tree.set(
            inner,
            lambda path, _: getattr(path[-1], "tuple_name", "") != "ScaleByScheduleState",
            **{k: a for k, a in parts.items() if a is not None},
        )

    def describe(self) -> dict[str, Any]:
        """The numbers and options, JSON types only; ``rerunnable`` is False if the schedule is a function."""
        described: dict[str, Any] = {"name": self.name}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "schedule":
                described[field.name] = value if isinstance(value, str) else float(value)
        if self.schedule is not None:
            described["schedule"] = schedule = self.schedule.describe()
            described |= {} if schedule.get("rerunnable", True) else {"rerunnable": False}
        return described


def _float(check: Callable[[str, Any], Any], name: str) -> Callable[[Any], Any]:
    return lambda value: check(name, value)


class SGD(Optimizer):
    r"""Stochastic gradient descent with decoupled weight decay: x ← x − ηg − ηθx.

    Args:
        lr: η > 0.
        weight_decay: θ ≥ 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: what multiplies η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    Raises:
        ValueError, TypeError: naming the argument out of its range.
    """

    name: ClassVar[str] = "sgd"
    lr: float = eqx.field(converter=_float(_check.positive, "lr"))
    weight_decay: float = eqx.field(default=0.0, converter=_float(_check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def _direction(self) -> optax.GradientTransformation:
        return optax.identity()

    def initial_state(self, problem: "AbstractProblem", noise: "AbstractNoise", x: Array) -> State:  # noqa: D102
        return State(x)


class SignSGD(Optimizer):
    r"""Sign descent with decoupled weight decay: x ← x − η sign(g) − ηθx, with sign(0) = 0.

    Args and errors as for `SGD`.
    """

    name: ClassVar[str] = "signsgd"
    lr: float = eqx.field(converter=_float(_check.positive, "lr"))
    weight_decay: float = eqx.field(default=0.0, converter=_float(_check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_sign()

    def initial_state(self, problem: "AbstractProblem", noise: "AbstractNoise", x: Array) -> State:  # noqa: D102
        return State(x)


class RMSpropW(Optimizer):
    r"""RMSprop with decoupled weight decay.

    v ← β₂v + (1 − β₂)g²;  x ← x − ηg/(√v + ε) − ηθx, with the *new* v and ε outside the root.

    Unlike optax's `rmsprop`, whose ε is inside the root by default; PyTorch's RMSprop has it outside, as here.

    Args:
        lr: η > 0.
        b2: β₂ in [0, 1), the decay of the second moment.
        eps: ε ≥ 0.
        weight_decay: θ ≥ 0.
        v0: accumulator at step 0: ``"second-moment"`` is E g² = (∇f)² + diag Σ at the start, ``"zero"`` is 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: what multiplies η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    Raises:
        ValueError, TypeError: naming the argument out of its range.
    """

    name: ClassVar[str] = "rmspropw"
    lr: float = eqx.field(converter=_float(_check.positive, "lr"))
    b2: float = eqx.field(default=0.99, converter=_float(_check.fraction, "b2"))
    eps: float = eqx.field(default=1e-8, converter=_float(_check.nonnegative, "eps"))
    weight_decay: float = eqx.field(default=0.0, converter=_float(_check.nonnegative, "weight_decay"))
    v0: str = eqx.field(default="second-moment", static=True)
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def __check_init__(self) -> None:
        _check.choice("v0", self.v0, ACCUMULATOR_STARTS)

    @property
    def rho2(self) -> Any:
        """ρ₂ = (1 − β₂)/η, the rate at which V forgets, per unit of time."""
        return (1 - self.b2) / self.lr

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.b2, _floor(self.eps), eps_in_sqrt=False, bias_correction=False)

    def initial_state(self, problem: "AbstractProblem", noise: "AbstractNoise", x: Array) -> State:  # noqa: D102
        if self.v0 == "zero":
            return State(x, v=jnp.zeros_like(x))
        return State(x, v=_second_moment(problem, noise, x)[1])


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay.

    m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²;  x ← x − η m̂/(√v̂ + ε) − ηθx, with m̂ = m/(1 − β₁ᵏ⁺¹) and
    v̂ = v/(1 − β₂ᵏ⁺¹) at step k = 0, 1, ….

    Args:
        lr: η > 0.
        b1: β₁ in [0, 1), the decay of the first moment.
        b2: β₂ in [0, 1), the decay of the second moment.
        eps: ε ≥ 0, outside the root.
        weight_decay: θ ≥ 0.
        v0: accumulators at step 0: ``"zero"`` is m = v = 0, corrected for that bias, as everyone's Adam; with
            ``"second-moment"`` they start where they would settle at the start, m = ∇f and v = (∇f)² + diag Σ, with
            no bias to correct: 1 in place of both 1 − βᵏ⁺¹.
        decay: ``"coupled"`` (η multiplies θ, as in PyTorch and optax) or ``"independent"``.
        schedule: what multiplies η: `Cosine`, `Polynomial`, `Warmup`, or a function of the step number with values in
            [0, 1]; or None.

    Raises:
        ValueError, TypeError: naming the argument out of its range.
    """

    name: ClassVar[str] = "adamw"
    lr: float = eqx.field(converter=_float(_check.positive, "lr"))
    b1: float = eqx.field(default=0.9, converter=_float(_check.fraction, "b1"))
    b2: float = eqx.field(default=0.999, converter=_float(_check.fraction, "b2"))
    eps: float = eqx.field(default=1e-8, converter=_float(_check.nonnegative, "eps"))
    weight_decay: float = eqx.field(default=0.0, converter=_float(_check.nonnegative, "weight_decay"))
    v0: str = eqx.field(default="zero", static=True)
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def __check_init__(self) -> None:
        _check.choice("v0", self.v0, ACCUMULATOR_STARTS)

    @property
    def rho1(self) -> Any:
        """ρ₁ = (1 − β₁)/η, the rate at which M forgets, per unit of time."""
        return (1 - self.b1) / self.lr

    @property
    def rho2(self) -> Any:
        """ρ₂ = (1 − β₂)/η, the rate at which V forgets, per unit of time."""
        return (1 - self.b2) / self.lr

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, _floor(self.eps))

    def initial_state(self, problem: "AbstractProblem", noise: "AbstractNoise", x: Array) -> State:  # noqa: D102
        if self.v0 == "zero":
            return State(x, jnp.zeros_like(x), jnp.zeros_like(x), jnp.asarray(0, jnp.int32))
        grad, square = _second_moment(problem, noise, x)
        return State(x, grad, square, jnp.asarray(CONVERGED, jnp.int32))


def _second_moment(problem: "AbstractProblem", noise: "AbstractNoise", x: Array) -> tuple[Array, Array]:
    """∇f and E g² = (∇f)² + diag Σ at x."""
    _, grad = problem.evaluate(x)
    return grad, (grad**2 + noise.variance(x)).astype(x.dtype)


def _floor(eps: Any) -> Any:
    """ε, or where ε is 0 the least number whose square float32 holds.

    A coordinate with neither gradient nor noise then stays still, and one whose squares underflow nearly so.
    """
    least = float(jnp.finfo(jnp.float32).tiny) ** 0.5
    return jnp.maximum(eps, least) if _check.is_traced(eps) else max(eps, least)


def precondition(numerator: Array, v: Array, eps: Any) -> Array:
    """Numerator / (√v + ε), and 0 where both numerator and v are 0."""
    # A product with the inverse: XLA then divides once for all numerators of one v.
    return numerator * (1 / (jnp.sqrt(v) + _floor(eps)))
