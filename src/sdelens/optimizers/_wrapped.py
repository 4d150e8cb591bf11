"""Optimizers that give another optimizer gradients which they ask for at other points of the same draw."""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from sdelens.core.random import Stream
from sdelens.core.tree import Layout
from sdelens.optimizers._base import Optimizer, Query, State

if TYPE_CHECKING:
    from sdelens.noise import NoiseLaw
    from sdelens.problems import AbstractProblem

__all__ = ["Wrapped", "checked_base"]


class Wrapped(Optimizer):
    """Base of optimizers that replace the gradient of another optimizer; a subclass defines `queried`.

    The learning rate, the state and its start are those of `base`. Of nested wrappers, the inner one asks for the
    gradients that the outer one makes. A subclass with a state of its own defines `step` too, as `SVRG` does.

    Attributes:
        base: the optimizer whose update is done with the new gradient.
    """

    base: eqx.AbstractVar[Optimizer]

    @property  # type: ignore[misc]
    def lr(self) -> Any:  # type: ignore[override]
        """Learning rate η of the base."""
        return self.base.lr

    @property
    def accumulators(self) -> Mapping[str, str]:  # type: ignore[override]
        """Those of the base."""
        return self.base.accumulators

    @property
    def unwrapped(self) -> Optimizer:
        return self.base.unwrapped

    @abc.abstractmethod
    def queried(self, x: Array, inner: Any, gradient: Array, query: Query) -> Array: ...

    def to_optax(self) -> optax.GradientTransformationExtraArgs:
        """As an optax transformation, whose `update` needs ``grad_fn(params, 0)``, the gradient of the same batch."""
        base = optax.with_extra_args_support(self.base.to_optax())

        def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any, **extra: Any) -> Any:
            x, unravel = ravel_pytree(params)

            def draw(x: Array) -> Array:
                return ravel_pytree(grad_fn(unravel(x[:, 0]), 0))[0][:, None]

            def outer(params: Any, *_: Any, **named: Any) -> Any:
                at = ravel_pytree(params)[0][:, None]
                return unravel(self.queried(at, state, draw(at), query)[:, 0])

            query = Query(draw, draw)
            gradient = self.queried(x[:, None], state, ravel_pytree(updates)[0][:, None], query)[:, 0]
            return base.update(unravel(gradient), state, params, grad_fn=outer, **extra)

        return optax.GradientTransformationExtraArgs(base.init, update)

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return self.base.initial_state(problem, noise, x)

    def begin(self, state: State, layout: Layout, stream: Stream) -> Any:
        return self.base.begin(state, layout, stream)

    def advance(self, x: Array, inner: Any, gradient: Array, layout: Layout) -> tuple[Array, Any]:
        """The update of the base with this gradient."""
        return self.base.advance(x, inner, gradient, layout)

    def step(self, x: Array, inner: Any, gradient: Array, query: Query, layout: Layout) -> tuple[Array, Any]:
        outer = self.outer(inner, query)
        return self.base.step(x, inner, self.queried(x, inner, gradient, query), outer, layout)

    def outer(self, inner: Any, query: Query) -> Query:
        """The query of the base: the new gradients, whose mean is taken as that without noise."""
        full = Query(query.mean, query.mean)
        return Query(
            lambda at: self.queried(at, inner, query(at), query),
            lambda at: self.queried(at, inner, query.mean(at), full),
        )

    def parts(self, x: Array, inner: Any, layout: Layout) -> dict[str, Array]:
        return self.base.parts(x, inner, layout)

    def rekeyed(self, inner: Any, number: Array, layout: Layout) -> Any:
        return self.base.rekeyed(inner, number, layout)

    def leaf_kinds(self, inner: Any, layout: Layout) -> Any:
        return self.base.leaf_kinds(inner, layout)

    def at_lr(self, lr: float) -> Self:
        """The same optimizer in continuous time at another learning rate: that of the base; all else is kept."""
        return eqx.tree_at(lambda own: own.base, self, self.base.at_lr(lr))

    def describe(self) -> dict[str, Any]:
        base = self.base.describe()
        rest = {} if base.get("rerunnable", True) else {"rerunnable": False}
        return {"name": self.name, "lr": float(self.lr), "base": base, **self._numbers(), **rest}

    def _numbers(self) -> dict[str, Any]:
        """Its own numbers and options, for `describe`."""
        return {}


def checked_base(base: Any) -> Optimizer:
    """`base` if it is an optimizer.

    Raises:
        TypeError: if it is not; the message says what to give.
    """
    if isinstance(base, Optimizer):
        return base
    given = f"the class {base.__name__} itself" if isinstance(base, type) else type(base).__name__
    raise TypeError(f"base: got {given}; give an optimizer, for example sl.SGD(lr=0.1).")
