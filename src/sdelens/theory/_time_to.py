"""The time that an optimizer needs to reach a loss, by the Gaussian closure."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.noise import AbstractNoise
from sdelens.optimizers import Optimizer
from sdelens.problems import AbstractProblem
from sdelens.results.printable import Parts, Printable
from sdelens.theory._predict import prepared
from sdelens.theory._propagation import propagate
from sdelens.theory._stationary import stationary

__all__ = ["TimeTo", "crossing", "time_to"]

_FIRST = 512


@dataclass(frozen=True, repr=False)
class TimeTo(Printable):
    """The time at which the predicted mean loss first reaches a value.

    Attributes:
        steps: optimizer steps, interpolated linearly between steps; infinite if it is not reached.
        time: t = kη at that step.
        loss: the value.
        reason: why it is not reached; empty otherwise, and inside JAX transformations.
    """

    steps: Any
    time: Any
    loss: Any
    reason: str = ""

    def _parts(self) -> Parts:
        if self.reason:
            return [f"The mean loss does not reach {self.loss:.5g}: {self.reason}."]
        return [f"The mean loss reaches {self.loss:.5g} after {self.steps:.6g} steps, at t = {self.time:.5g}."]


jax.tree_util.register_dataclass(TimeTo, ["steps", "time", "loss"], ["reason"])


def time_to(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    loss: Any,
    *,
    steps: int = 100_000,
    start: Any = None,
) -> TimeTo:
    """Compute when the mean loss of `predict` first reaches a value.

    Inside `jax.grad`, `jax.jit` and `jax.vmap` all `steps` are propagated, and derivatives are those of the implicit
    function: dk = −(∂E f/∂θ)/(E f(k) − E f(k − 1)) dθ within the step of the crossing. Give the smallest number of
    steps that is enough there.

    Args:
        problem: as in `predict`.
        noise: as in `predict`.
        optimizer: as in `predict`.
        loss: the value to reach.
        steps: largest number of optimizer steps to look at.
        start: as in `predict`.

    Returns:
        A `TimeTo`. Its steps are infinite if the loss is not reached; `reason` says whether the stationary loss is
        above it, or more steps are needed.

    Raises:
        TypeError, ValueError: as `predict`.

    Source: derived here.

    Examples:
        >>> import sdelens as sl
        >>> problem, noise = sl.Quadratic([1.0, 4.0]), sl.GaussianNoise(1.0)
        >>> print(sl.theory.time_to(problem, noise, sl.SGD(0.05), loss=0.5))
        The mean loss reaches 0.5 after 5.3009 steps, at t = 0.26505.
    """
    loss = check.number("loss", loss)
    case, model, moments, (steps, _) = prepared(problem, noise, optimizer, (steps, 1), start)
    if check.any_traced(model, optimizer, loss, case.start):
        found = crossing(jnp.asarray(propagate(model, case.optimizer, moments(), steps, 1, 0).loss), loss)
        return TimeTo(found, found * optimizer.lr, loss)
    begin, window = moments(), min(_FIRST, steps)
    while True:
        curve = np.asarray(propagate(model, case.optimizer, begin, window, 1, 0).loss, np.float64)
        reached = np.flatnonzero(curve <= loss)
        if reached.size:
            k = int(reached[0])
            at = k - 1 + (curve[k - 1] - loss) / (curve[k - 1] - curve[k]) if k else 0.0
            return TimeTo(at, at * float(optimizer.lr), loss)
        if window == steps or not math.isfinite(curve[-1]):
            break
        window = min(4 * window, steps)
    return TimeTo(math.inf, math.inf, loss, _reason(problem, noise, optimizer, loss, curve))


def crossing(curve: Array, loss: Any) -> Array:
    """Fractional step at which a curve first reaches a value; infinite if it does not."""
    below = curve <= loss
    k = jnp.argmax(below)
    before, after = curve[jnp.maximum(k - 1, 0)], curve[k]
    inside = below.any() & (k > 0)
    fall = jnp.where(inside, before - after, 1)
    at = k - 1 + jnp.where(inside, (before - loss) / fall, 1)
    return jnp.where(below.any(), at, jnp.inf)


def _reason(problem: Any, noise: Any, optimizer: Any, loss: float, curve: np.ndarray) -> str:
    if not math.isfinite(curve[-1]):
        return "the predicted loss diverges; give a smaller lr"
    least = f"the smallest in {len(curve) - 1} steps is {curve.min():.5g}"
    if optimizer.schedule is None:
        try:
            rest = stationary(problem, noise, optimizer).loss
        except ValueError as error:
            return f"{least}, and {error}"
        if rest > loss:
            return f"the stationary loss is {rest:.5g}, and {least}"
    return f"{least}; it may need more, see steps="
