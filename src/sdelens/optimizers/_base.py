"""Base classes of all optimizer specifications, and of those with decoupled decay and a schedule."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from sdelens.core import check
from sdelens.core.names import DECAYS
from sdelens.core.random import Stream
from sdelens.core.tree import Layout
from sdelens.optimizers._accumulators import leaf_kinds_of
from sdelens.optimizers._elementwise import QUERIED, Update, update_of
from sdelens.optimizers.schedules import Schedule

if TYPE_CHECKING:
    from sdelens.noise import NoiseLaw
    from sdelens.problems import AbstractProblem

__all__ = [
    "CONVERGED",
    "DecayedOptimizer",
    "Optimizer",
    "Query",
    "State",
    "floor",
    "number",
    "precondition",
    "second_moment",
]


class Query:
    """The gradients of one draw, ``query(x)``, at other points x of all paths, shape (d, P), of that shape.

    The draw is a mini-batch, or the random numbers of injected noise. JAX can differentiate it:
    ``jax.jvp(query, (x,), (v,))[1]`` is the product of the Hessian of that mini-batch with v.
    """

    def __init__(self, draw: Callable[[Array], Array], mean: Callable[[Array], Array]) -> None:
        self._draw, self._mean = draw, mean

    def __call__(self, x: Array) -> Array:
        """The stochastic gradient of the draw at x."""
        return self._draw(x)

    def mean(self, x: Array) -> Array:
        """The mean of the stochastic gradient at x over all draws: the full gradient ∇f(x) unless it is biased."""
        return self._mean(x)


CONVERGED = 2**30
"""Number of updates after which no bias is left to correct, for any decay that float32 distinguishes from 1."""


class State(NamedTuple):
    """State of an optimizer or of its SDE, each component of shape (d,), or (d, P) for P paths.

    As a `start`, each part is a flat vector or a pytree like the parameters: ``State(x, m, v, count)`` with optax's
    ``mu``, ``nu`` and ``count``, or PyTorch's ``exp_avg``, ``exp_avg_sq`` and ``step``; x=None means the problem's
    start.

    Attributes:
        x: parameters.
        m: first-moment accumulator, None where the optimizer has none.
        v: second-moment accumulator, None where the optimizer has none.
        count: number of gradients that m and v have averaged at step 0, the same for all paths; Adam's bias correction
            uses it. None if the optimizer has no bias correction.
        found: statistics of the noise's law that an integrator reuses (`NoiseLaw.compute_cache`), else None.
    """

    x: Any
    m: Any = None
    v: Any = None
    count: Any = None
    found: Any = None


class Optimizer(eqx.Module):
    """A specification, which the discrete run, its initial state and its SDEs all read.

    `begin`, `advance` and `leaf_kinds` run the optimizer on many paths.

    Attributes:
        accumulators: the parts of `State` that it has besides x, with their names in optax.
        lr: learning rate η, which sets the unit of time.
    """

    accumulators: ClassVar[Mapping[str, str]] = {}
    lr: eqx.AbstractVar[float]

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Its name in tables."""

    @abc.abstractmethod
    def to_optax(self) -> optax.GradientTransformation:
        """The optimizer as an optax transformation; `update` needs the parameters."""

    @abc.abstractmethod
    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        """State at step 0 of paths at x, each component of its shape, (d,) or (d, P)."""

    @abc.abstractmethod
    def at_lr(self, lr: float) -> Self:
        """The same optimizer in continuous time at another learning rate.

        Raises:
            ValueError: if there is no such optimizer.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild it, JSON types only; ``rerunnable`` is False if it cannot be rebuilt."""

    @abc.abstractmethod
    def begin(self, state: State, layout: Layout, stream: Stream) -> Any:
        """The optimizer's state besides x at step 0: a pytree of scalars and of arrays (n,) or (n, P)."""

    @abc.abstractmethod
    def advance(self, x: Array, inner: Any, gradient: Array, layout: Layout) -> tuple[Array, Any]:
        """One update of all paths, x and gradient of shape (d, P): the new x, and the rest of the new state."""

    def queried(self, x: Array, inner: Any, gradient: Array, query: Query) -> Array:
        """The gradient by which the update moves, made of those of the same draw at other points: here `gradient`.

        Override it for an optimizer that asks for gradients at other points; its update then is that of the class it
        derives from, with this gradient.

        Args:
            x: parameters, shape (d, P), one column per path; reductions over coordinates need axis=0, keepdims=True.
            inner: the rest of the state.
            gradient: the stochastic gradient at x.
            query: ``query(y)`` is the stochastic gradient of the same draw at other points y, shape (d, P), and
                ``query.mean(y)`` the full gradient there.
        """
        return gradient

    def queries(self, layout: Layout) -> bool:
        """Whether an update asks for gradients at other points than x."""
        return type(self).queried is not Optimizer.queried

    def step(self, x: Array, inner: Any, gradient: Array, query: Query, layout: Layout) -> tuple[Array, Any]:
        """One update as `advance`, with the gradients of the same draw at other points."""
        return self.advance(x, inner, self.queried(x, inner, gradient, query), layout)

    @property
    def unwrapped(self) -> "Optimizer":
        """The optimizer whose state and numbers it has: itself, unless it wraps another one."""
        return self

    def rekeyed(self, inner: Any, number: Array, layout: Layout) -> Any:
        """`inner` with `number` folded into its random keys, if it has any."""
        return inner

    def parts(self, x: Array, inner: Any, layout: Layout) -> dict[str, Array]:
        """The named floating-point parts of the state besides x, each (n, P), or (P,) for a single number."""
        return {}

    @abc.abstractmethod
    def leaf_kinds(self, inner: Any, layout: Layout) -> Any:
        """How an SDE treats each leaf of `inner`, one of `LEAF_KINDS`: a pytree of the same structure."""

    def update_on(self, layout: Layout, dtype: Any) -> Update:
        """How an update treats the coordinates; gradients at other points depend on all of them."""
        if self.queries(layout):
            return QUERIED
        return update_of(self.to_optax(), jax.ShapeDtypeStruct((layout.size,), dtype))


class DecayedOptimizer(Optimizer):
    """Base of the library's specifications, with learning rate η, decoupled decay θ, and a schedule h.

    One step is x ← x − ηhₖ·direction − decay·x, where the decay is ηhₖθ if `decay` is ``"coupled"`` (PyTorch and optax)
    and hₖθ if ``"independent"``. The numbers are pytree leaves, so a new learning rate causes no recompilation.
    """

    memories: ClassVar[tuple[str, ...]] = ("b1", "b2")
    """Names of the decays β for which `at_lr` keeps ρ = (1 − β)/η fixed, if the optimizer has them."""
    weight_decay: eqx.AbstractVar[float]
    decay: eqx.AbstractVar[str]
    schedule: eqx.AbstractVar[Schedule | None]

    def __check_init__(self) -> None:
        check.choice("decay", self.decay, DECAYS)

    @abc.abstractmethod
    def _direction(self) -> optax.GradientTransformation:
        """The optax transformation of the gradient before decay and learning rate."""

    def at_lr(self, lr: float) -> Self:
        """The same optimizer in continuous time at another learning rate.

        ρ = (1 − β)/η, the decay θ per unit of time, ε, and the schedule as a function of t = kη are kept fixed: an SDE
        is the limit of this family of optimizers as η → 0.

        Raises:
            ValueError: if ηρ > 1, so that a β would be negative; the message names the largest possible η.
        """
        lr = check.positive("lr", lr)
        ratio = lr / self.lr
        changed: dict[str, Any] = {"lr": lr}
        for name in self.memories:
            if hasattr(self, name):
                forgets = (1 - getattr(self, name)) * ratio
                if 1 < forgets < 1 + 1e-9:  # rounding
                    forgets = 1.0
                if forgets > 1:
                    raise ValueError(
                        f"lr: got {lr:g}, which makes {name} = {1 - forgets:.3g} negative, because (1 - {name})/lr = "
                        f"{forgets / lr:g} is kept fixed; give an lr of at most {lr / forgets:g}."
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
        return self._finished(self._direction())

    def _finished(self, direction: optax.GradientTransformation) -> optax.GradientTransformation:
        """A direction with decay and learning rate."""
        rate: Any = self.lr
        if self.schedule is not None:
            rate = lambda count: self.lr * self.multiplier(count)  # noqa: E731
        decay = optax.add_decayed_weights(self.decay_rate)
        return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))

    def optax_state(self, state: State) -> optax.OptState:
        """The state of `to_optax()` at step 0 with the accumulators of `state`, for example `initial_state`'s."""
        inner = self.to_optax().init(state.x)
        parts = {theirs: getattr(state, ours) for ours, theirs in self.accumulators.items()}
        parts = {name: value for name, value in parts.items() if value is not None}
        # This sets the count of the moments, not that of a schedule.
        return optax.tree.set(
            inner, lambda path, _: getattr(path[-1], "tuple_name", "") != "ScaleByScheduleState", **parts
        )

    def begin(self, state: State, layout: Layout, stream: Stream) -> Any:
        """The optax state; as the update is element-wise, one state serves all paths and counters are scalars."""
        return self.optax_state(state)

    def advance(self, x: Array, inner: Any, gradient: Array, layout: Layout) -> tuple[Array, Any]:
        """One optax update of all paths at once."""
        updates, inner = self.to_optax().update(gradient, inner, x)
        return optax.apply_updates(x, updates), inner

    def parts(self, x: Array, inner: Any, layout: Layout) -> dict[str, Array]:
        """The accumulators m and v, if it has them."""
        named = {ours: optax.tree.get(inner, theirs) for ours, theirs in self.accumulators.items() if ours != "count"}
        return {name: value for name, value in named.items() if value is not None}

    def leaf_kinds(self, inner: Any, layout: Layout) -> Any:
        """Those of the leaves of the optax state."""
        return leaf_kinds_of(inner)

    def describe(self) -> dict[str, Any]:
        """The numbers and options, JSON types only; ``rerunnable`` is False if the schedule is a function."""
        described: dict[str, Any] = {"name": self.name}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "schedule":
                described[field.name] = value if isinstance(value, str | bool) else float(value)
        if self.schedule is not None:
            described["schedule"] = schedule = self.schedule.describe()
            described |= {} if schedule.get("rerunnable", True) else {"rerunnable": False}
        return described


def number(check: Callable[[str, Any], Any], name: str) -> Callable[[Any], Any]:
    """A converter of a field that checks a number and names the field in messages."""
    return lambda value: check(name, value)


def second_moment(problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> tuple[Array, Array]:
    """E g, which is ∇f unless the noise is biased, and E g² = (E g)² + diag Σ at x."""
    grad = noise.mean_gradient(x, problem.evaluate(x)[1])
    return grad, (grad**2 + noise.variance(x)).astype(x.dtype)


def floor(eps: Any) -> Any:
    """ε, but at least the smallest number whose square float32 can represent.

    A coordinate without gradient and noise then does not move, and one whose squares underflow hardly moves.
    """
    least = float(jnp.finfo(jnp.float32).tiny) ** 0.5
    return jnp.maximum(eps, least) if check.is_traced(eps) else max(eps, least)


def precondition(numerator: Array, v: Array, eps: Any) -> Array:
    """Numerator / (√v + ε), and 0 where both numerator and v are 0."""
    # A product with the inverse: XLA then divides once for all numerators of one v.
    return numerator * (1 / (jnp.sqrt(v) + floor(eps)))
