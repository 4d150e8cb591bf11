"""The interface of a problem, and a problem with weight decay in its loss."""

import abc
from typing import Any

import equinox as eqx
import jax
from jax import Array

from sdelens.core import check
from sdelens.core.tree import Layout, sum_coordinates

__all__ = ["AbstractProblem", "L2Problem"]


class AbstractProblem(eqx.Module):
    """A loss f of d parameters, a start, and the infimum if it is known.

    In all methods a path's parameters are one flat vector x of shape (d,), and those of many paths are an array of
    shape (d, P), paths last; `loss` and `evaluate` accept both.
    """

    start: eqx.AbstractVar[Array]
    """Flat start, shape (d,)."""

    @property
    def dim(self) -> int:
        """Number of parameters d."""
        return int(self.start.shape[0])

    @property
    def infimum(self) -> float | None:
        """The infimum of the loss where it is known, else None; errors are measured relative to it."""
        return None

    @property
    @abc.abstractmethod
    def layout(self) -> Layout:
        """How the d coordinates lie in the user's pytree of parameters."""

    @abc.abstractmethod
    def loss(self, x: Array) -> Array:
        """f(x): shape () for x of shape (d,), shape (P,) for x of shape (d, P)."""

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """f(x) and ∇f(x), the gradient in the shape of x."""

        def total(x: Array) -> tuple[Array, Array]:
            loss = self.loss(x)
            return loss.sum(), loss

        (_, loss), grad = jax.value_and_grad(total, has_aux=True)(x)
        return loss, grad

    @property
    def expensive_gradient(self) -> bool:
        """Whether evaluating f and ∇f dominates the cost of a step, as for a function or a network."""
        return False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the quantities that `metric` measures besides the loss."""
        return ()

    def metric(self, name: str, x: Array) -> Array:
        """The metric of that name at x: shape () for x of shape (d,), shape (P,) for x of shape (d, P).

        Raises:
            ValueError: if the problem has no metric of that name; the message lists the available ones.
        """
        raise ValueError(
            f"metric: got {name!r}, but this problem has no such metric; give sl.Problem(..., metrics={{{name!r}: "
            "function})."
        )

    def with_l2(self, strength: float) -> "AbstractProblem":
        """The problem with loss f(x) + ½ strength ‖x‖²: weight decay in the loss and thus in every gradient.

        With Adam it differs from the optimizer's decoupled `weight_decay`, since it is divided by √v too.

        Raises:
            ValueError, TypeError: if `strength` is not a number of 0 or greater.
        """
        return L2Problem(self, check.nonnegative("strength", strength))

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the problem, JSON types only; ``rerunnable`` is False if it cannot be rebuilt."""


class L2Problem(AbstractProblem):
    """f(x) + ½ strength ‖x‖²; its infimum is not known."""

    problem: AbstractProblem
    strength: float
    start: Array

    def __init__(self, problem: AbstractProblem, strength: float) -> None:
        self.problem, self.strength, self.start = problem, strength, problem.start

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    @property
    def expensive_gradient(self) -> bool:
        return self.problem.expensive_gradient

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.problem.metrics

    def metric(self, name: str, x: Array) -> Array:
        return self.problem.metric(name, x)

    def loss(self, x: Array) -> Array:
        return self.problem.loss(x) + 0.5 * self.strength * sum_coordinates(x * x)

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        loss, grad = self.problem.evaluate(x)
        return loss + 0.5 * self.strength * sum_coordinates(x * x), grad + self.strength * x

    def describe(self) -> dict[str, Any]:
        return {**self.problem.describe(), "l2": float(self.strength)}
