"""The interface of steppers, which advance the states of many paths by one optimizer step."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array, lax

from sdelens.core.random import Stream

__all__ = ["MAX_COORDINATES", "Integration", "Stepper", "Wrapper"]

MAX_COORDINATES = 64
"""Moments of single coordinates are recorded up to this dimension."""


class Stepper(eqx.Module):
    """Advances many paths at once, one optimizer step after another (paths are the last axis)."""

    @abc.abstractmethod
    def init(self, stream: Stream) -> Any:
        """State at step 0: scalars and arrays of shape (d,) or (d, P); those without an axis P apply to all paths."""

    @abc.abstractmethod
    def position(self, state: Any) -> Array:
        """The parameters x of a state."""

    def parts(self, state: Any) -> dict[str, Array]:
        """The named parts of a state that observables can read: arrays (n, P), or (P,) for single numbers.

        ``"x"`` is always among them; the accumulators of an optimizer and of its SDEs have the same names.
        """
        return {"x": self.position(state)}

    def observables(self, state: Any) -> Array:
        """Quantities whose moments are recorded, shape (K, P): the coordinates if there are at most 64, else none."""
        x = self.position(state)
        return x if x.shape[0] <= MAX_COORDINATES else x[:0]

    @property
    def draws(self) -> int:
        """Number of random numbers per path and step, if they may outnumber the coordinates; otherwise 0."""
        return 0

    @property
    def needs_gradient(self) -> bool:
        """Whether `step` uses ∇f."""
        return True

    @property
    def expensive_gradient(self) -> bool:
        """Whether evaluating f and ∇f dominates the cost of a step."""
        return True

    @abc.abstractmethod
    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """f(x) and ∇f(x)."""

    @abc.abstractmethod
    def step(self, k: Array, state: Any, grad: Array, stream: Stream) -> Any:
        """State at k + 1 from the state at k, ∇f at that state (if it is needed) and the stream of the whole run."""

    def moved(self, k: Array, state: Any, stream: Stream) -> Any:
        """State at k + 1 from the state at k, with ∇f evaluated at that state if it is needed."""
        x = self.position(state)
        return self.step(k, state, self.evaluate(x)[1] if self.needs_gradient else x, stream)

    def steps(
        self, first: Array, end: Array, state: Any, stream: Stream, held: Callable[[Any], Any] | None = None
    ) -> Any:
        """State at step `end` from the state at step `first`; `held`, if given, is applied to the state of every step.

        It evaluates ∇f anew at every step.
        """

        def once(k: Array, state: Any) -> Any:
            new = self.moved(k, state, stream)
            return new if held is None else held(new)

        return lax.fori_loop(first, end, once, state)


class Wrapper(Stepper):
    """Any stepper; subclasses change some of what it does.

    Attributes:
        stepper: what advances the paths.
    """

    stepper: Stepper

    def init(self, stream: Stream) -> Any:
        return self.stepper.init(stream)

    def position(self, state: Any) -> Array:
        return self.stepper.position(state)

    def parts(self, state: Any) -> dict[str, Array]:
        return self.stepper.parts(state)

    def observables(self, state: Any) -> Array:
        return self.stepper.observables(state)

    @property
    def draws(self) -> int:
        return self.stepper.draws

    @property
    def needs_gradient(self) -> bool:
        return self.stepper.needs_gradient

    @property
    def expensive_gradient(self) -> bool:
        return self.stepper.expensive_gradient

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        return self.stepper.evaluate(x)

    def step(self, k: Array, state: Any, grad: Array, stream: Stream) -> Any:
        return self.stepper.step(k, state, grad, stream)


class Integration(Stepper):
    """One optimizer step η of an SDE as n steps of Δt = η/n, each with a new increment of Brownian motion.

    Attributes:
        lr: η.
        substeps: n ≥ 1; as n grows, the integration converges to the SDE itself.
        increments: ξ in ΔW = √Δt ξ: ``"gaussian"``, or ``"rademacher"``, ±1 with equal probability.
    """

    lr: eqx.AbstractVar[float]
    substeps: eqx.AbstractVar[int]
    increments: eqx.AbstractVar[str]

    @property
    @abc.abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of ΔW per path; many paths add a last axis."""

    @property
    def root_first(self) -> bool:
        """Whether ΔW begins with the Brownian motion of the gradient noise, followed by other Brownian motions."""
        return False

    @abc.abstractmethod
    def advance(self, k: Array, j: Array | int, y: Any, grad: Array, dW: Array) -> Any:
        """The state after substep j of step k with a given increment of Brownian motion."""

    def with_updated_cache(self, k: Array, j: Array | int, y: Any, grad: Array, stream: Stream) -> Any:
        """The state with its cached statistics of the coefficients recomputed, if that is due."""
        return y

    @property
    def draws(self) -> int:
        return math.prod(self.noise_shape)

    def step(self, k: Array, state: Any, grad: Array, stream: Stream) -> Any:
        dtype = self.position(state).dtype

        def increment(j: Array | int) -> Array:
            draws = stream.at(k, j)
            draw = draws.normal if self.increments == "gaussian" else draws.signs
            xi = draw(self.draws, dtype).reshape(*self.noise_shape, -1)
            return jnp.sqrt(self.lr / self.substeps) * xi

        def substep(j: Array | int, y: Any, grad: Array) -> Any:
            return self.advance(k, j, self.with_updated_cache(k, j, y, grad, stream), grad, increment(j))

        if self.substeps == 1:
            return substep(0, state, grad)
        return lax.fori_loop(0, self.substeps, lambda j, y: substep(j, y, self.evaluate(self.position(y))[1]), state)

    def step_along(self, k: Array, state: Any, dW: Array, stream: Stream) -> Any:
        """One optimizer step with given increments, of shape (substeps, …, P)."""

        def substep(j: Array, y: Any) -> Any:
            grad = self.evaluate(self.position(y))[1]
            y = self.with_updated_cache(k, j, y, grad, stream)
            return self.advance(k, j, y, grad, lax.dynamic_index_in_dim(dW, j, keepdims=False))

        if self.substeps == 1:
            return substep(jnp.asarray(0), state)
        return lax.fori_loop(0, self.substeps, substep, state)
