"""The optimizer itself: optax updates with noisy gradients."""

from typing import Any, NamedTuple

import equinox as eqx
from jax import Array

from sdelens.cases.starts import Start
from sdelens.core.random import Stream
from sdelens.core.tree import Layout
from sdelens.integrate._base import Stepper
from sdelens.noise import NoiseLaw
from sdelens.optimizers import Optimizer, Query
from sdelens.problems import AbstractProblem

__all__ = ["Discrete"]


class DiscreteState(NamedTuple):
    """The parameters and the state of the optimizer."""

    x: Any
    inner: Any


class Discrete(Stepper):
    """x, optax state ← optax update with g = ∇f(x) + Z; the optimizer may ask for g of the same draw at other points.

    Attributes:
        problem: what is minimised.
        noise: law of g, bound to the problem.
        optimizer: the specification.
        start: where the paths start.
        layout: layout of the problem's parameters.
    """

    problem: AbstractProblem
    noise: NoiseLaw
    optimizer: Optimizer
    start: Start
    layout: Layout = eqx.field(static=True)

    def init(self, stream: Stream) -> DiscreteState:  # noqa: D102
        state = self.start.state(stream, lambda x: self.optimizer.initial_state(self.problem, self.noise, x))
        return DiscreteState(state.x, self.optimizer.begin(state, self.layout, stream))

    def position(self, state: DiscreteState) -> Array:  # noqa: D102
        return state.x

    def parts(self, state: DiscreteState) -> dict[str, Array]:  # noqa: D102
        return {"x": state.x, **self.optimizer.parts(state.x, state.inner, self.layout)}

    def evaluate(self, x: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.problem.evaluate(x)

    @property
    def needs_gradient(self) -> bool:  # noqa: D102
        return self.noise.needs_gradient

    @property
    def expensive_gradient(self) -> bool:  # noqa: D102
        return self.problem.expensive_gradient

    def step(self, k: Array, state: DiscreteState, grad: Array, stream: Stream) -> DiscreteState:  # noqa: D102
        noisy = self.noise.gradient(k, state.x, grad, stream)
        return self.advance(state, noisy, self.query(k, stream))

    def query(self, k: Array, stream: Stream) -> Query:
        """Stochastic gradients at other points, of the draw that `noise.gradient` makes for step k of the stream.

        Every draw is a function of the step and the path alone, so the same call at another point is the same draw.
        """

        def draw(x: Array) -> Array:
            return self.noise.gradient(k, x, self.evaluate(x)[1] if self.needs_gradient else x, stream)

        return Query(draw, lambda x: self.noise.at_step(k).mean_gradient(x, self.evaluate(x)[1]))

    def advance(self, state: DiscreteState, noisy: Array, query: Query | None = None) -> DiscreteState:
        """One update with a given stochastic gradient and, if the optimizer asks for them, those at other points."""
        parts = (state.x, state.inner, noisy)
        if query is None:
            return DiscreteState(*self.optimizer.advance(*parts, self.layout))
        return DiscreteState(*self.optimizer.step(*parts, query, self.layout))
