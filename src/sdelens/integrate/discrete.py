"""The optimizer itself: optax updates with noisy gradients."""

from typing import Any, NamedTuple

import equinox as eqx
from jax import Array

from sdelens.cases.starts import Start
from sdelens.core.random import Stream
from sdelens.core.tree import Layout
from sdelens.integrate._base import Stepper
from sdelens.noise import NoiseLaw
from sdelens.optimizers import Optimizer
from sdelens.problems import AbstractProblem

__all__ = ["Discrete"]


class DiscreteState(NamedTuple):
    """The parameters and the state of the optimizer."""

    x: Any
    inner: Any


class Discrete(Stepper):
    """x, optax state ← optax update with g = ∇f(x) + Z.

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

    def evaluate(self, x: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.problem.evaluate(x)

    @property
    def needs_gradient(self) -> bool:  # noqa: D102
        return self.noise.needs_gradient

    @property
    def expensive_gradient(self) -> bool:  # noqa: D102
        return self.problem.expensive_gradient

    def step(self, k: Array, state: DiscreteState, grad: Array, stream: Stream) -> DiscreteState:  # noqa: D102
        return self.advance(state, self.noise.gradient(k, state.x, grad, stream))

    def advance(self, state: DiscreteState, noisy: Array) -> DiscreteState:
        """One update with a given stochastic gradient."""
        return DiscreteState(*self.optimizer.advance(state.x, state.inner, noisy, self.layout))
