"""What the ensemble runs: anything that advances the state of many paths by one optimizer step."""

import abc
from typing import Any

import equinox as eqx
from jax import Array

from sdelens._random import Stream

__all__ = ["Stepper"]


class Stepper(eqx.Module):
    """One optimizer step after another, for many paths at once (paths on the last axis)."""

    @abc.abstractmethod
    def init(self) -> Any:
        """State of one path at step 0: arrays of shape (d,), and scalars that all paths share."""

    @abc.abstractmethod
    def position(self, state: Any) -> Array:
        """The parameters x of a state."""

    @abc.abstractmethod
    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """f(x) and ∇f(x)."""

    @abc.abstractmethod
    def step(self, k: Array, state: Any, grad: Array, stream: Stream) -> Any:
        """State at k + 1 from the state at k, ∇f there, and the stream of random numbers of the whole run."""
