"""What the ensemble runs: anything that advances the state of many paths by one optimizer step."""

import abc
from typing import Any

import equinox as eqx
from jax import Array

from sdelens._random import Stream

__all__ = ["MAX_COORDINATES", "Stepper"]

MAX_COORDINATES = 64
"""Moments of single coordinates are recorded up to this dimension."""


class Stepper(eqx.Module):
    """One optimizer step after another, for many paths at once (paths on the last axis)."""

    @abc.abstractmethod
    def init(self, stream: Stream) -> Any:
        """State at step 0: arrays of shape (d,) or (d, P), and scalars, for all paths alike unless they have P."""

    @abc.abstractmethod
    def position(self, state: Any) -> Array:
        """The parameters x of a state."""

    def observables(self, state: Any) -> Array:
        """What moments are recorded of, shape (K, P): the coordinates, where there are at most 64."""
        x = self.position(state)
        return x if x.shape[0] <= MAX_COORDINATES else x[:0]

    @property
    def draws(self) -> int:
        """Random numbers that a path takes at a step, where they may outnumber its coordinates."""
        return 0

    @property
    def needs_gradient(self) -> bool:
        """Whether `step` makes use of ∇f."""
        return True

    @abc.abstractmethod
    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """f(x) and ∇f(x)."""

    @abc.abstractmethod
    def step(self, k: Array, state: Any, grad: Array, stream: Stream) -> Any:
        """State at k + 1 from the state at k, ∇f there (unless it needs none), and the stream of the whole run."""
