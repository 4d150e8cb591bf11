"""Learning-rate schedules: multipliers hₖ in [0, 1] of η, the same in an optimizer and in its SDEs.

The numbers are pytree leaves, so a new length or power causes no recompilation, and a result can name them.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from sdelens.core import check

__all__ = ["Constant", "Cosine", "Interpolated", "Polynomial", "Schedule", "Warmup", "as_schedule"]


class Limits(NamedTuple):
    """Long-run behaviour of a schedule; None where it is not known.

    Attributes:
        vanishes: whether h → 0.
        lasts: whether ∫ h dt = ∞.
    """

    vanishes: bool | None
    lasts: bool | None


class Schedule(eqx.Module):
    """A multiplier h of the learning rate."""

    @property
    def limits(self) -> Limits:
        """Whether h → 0 and ∫ h dt = ∞; if both hold, a loss with constant noise can converge to its infimum."""
        return Limits(None, None)

    @abc.abstractmethod
    def __call__(self, step: Any, lr: Any) -> Array:
        """The multiplier h at step k of the run, which may be fractional; η converts steps to time, t = kη."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild it, JSON types only."""

    def stretched(self, ratio: float, time: float | None = None) -> "Schedule":
        """The same multiplier over `ratio` times as many steps: the same function of time if η is divided by `ratio`.

        Args:
            ratio: factor of the number of steps.
            time: factor by which the new η must be multiplied to give the old one; default: `ratio`.
        """
        return _Stretched(self, ratio, ratio if time is None else time)


class Cosine(Schedule):
    r"""Half a cosine from 1 down to `end`, which is kept afterwards: hₖ = end + (1 − end)(1 + cos(πk/steps))/2.

    Args:
        steps: optimizer steps until the end, a whole number of at least 1.
        end: last value, in [0, 1).

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.

    Examples:
        >>> import sdelens as sl
        >>> optimizer = sl.AdamW(lr=0.01, schedule=sl.Warmup(100, sl.Cosine(900)))
    """

    steps: float
    end: float

    def __init__(self, steps: float, end: float = 0.0) -> None:
        self.steps = _length(steps)
        self.end = check.fraction("end", end)

    def __call__(self, step: Any, lr: Any) -> Array:  # noqa: D102
        share = jnp.clip(jnp.asarray(step, float) / self.steps, 0, 1)
        return self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(math.pi * share))

    @property
    def limits(self) -> Limits:  # noqa: D102
        return Limits(self.end == 0, self.end > 0)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {"name": "cosine", "steps": float(self.steps), "end": float(self.end)}


class Polynomial(Schedule):
    r"""Decay like a power of time: h(t) = (1 + t)^{−ϑ} with t = kη.

    On strongly convex problems the mean loss of SGD and SignSGD goes to its infimum for ϑ ≤ 1 (∫h = ∞ and h → 0);
    almost every path converges for ½ < ϑ ≤ 1 (Robbins and Monro 1951).

    Args:
        power: ϑ > 0.

    Raises:
        ValueError, TypeError: if it is not a number greater than 0.
    """

    power: float

    def __init__(self, power: float) -> None:
        self.power = check.positive("power", power)

    def __call__(self, step: Any, lr: Any) -> Array:  # noqa: D102
        return (1 + jnp.asarray(step, float) * lr) ** -self.power

    @property
    def limits(self) -> Limits:  # noqa: D102
        return Limits(True, self.power <= 1)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {"name": "polynomial", "power": float(self.power)}


class Warmup(Schedule):
    r"""A linear rise, hₖ = (k + 1)/steps for k < steps, and then 1 or another schedule, whose step 0 comes next.

    Args:
        steps: optimizer steps of the rise, at least 1.
        then: the schedule that follows, or None.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.
    """

    steps: float
    then: Schedule | None

    def __init__(self, steps: float, then: "Schedule | Callable[[Any], Any] | None" = None) -> None:
        self.steps = _length(steps)
        self.then = as_schedule(then)

    def __call__(self, step: Any, lr: Any) -> Array:  # noqa: D102
        step = jnp.asarray(step, float)
        after = 1.0 if self.then is None else self.then(jnp.maximum(step - self.steps, 0), lr)
        return jnp.where(step < self.steps, jnp.minimum((step + 1) / self.steps, 1), after)

    @property
    def limits(self) -> Limits:  # noqa: D102
        return Limits(False, True) if self.then is None else self.then.limits

    def describe(self) -> dict[str, Any]:  # noqa: D102
        then = None if self.then is None else self.then.describe()
        described = {"name": "warmup", "steps": float(self.steps), "then": then}
        return described if then is None or then.get("rerunnable", True) else described | {"rerunnable": False}


class Interpolated(Schedule):
    r"""Linear between knots (kⱼ, hⱼ), and constant before the first and after the last of them.

    Args:
        steps: kⱼ, at least two steps of 0 or greater that increase, shape (n,).
        values: hⱼ, in [0, 1], shape (n,).

    Raises:
        ValueError, TypeError: if an argument is not as described; the message names it.

    Examples:
        >>> import sdelens as sl
        >>> decay = sl.Interpolated([0, 800, 1000], [1, 1, 0])
        >>> [float(decay(k, 0.01)) for k in (400, 900, 2000)]
        [1.0, 0.5, 0.0]
    """

    steps: Any
    values: Any

    def __init__(self, steps: ArrayLike, values: ArrayLike) -> None:
        at, heights = (check.finite_array(n, a, (1,)) for n, a in (("steps", steps), ("values", values)))
        if len(at) < 2 or len(heights) != len(at):
            raise ValueError(
                f"values: got {len(heights)} for {len(at)} steps; give at least two steps and one value for each."
            )
        if not check.is_traced(at) and (at[0] < 0 or (np.diff(at) <= 0).any()):
            raise ValueError("steps: must be 0 or greater and increase; sort them, and give one value per step.")
        if not check.is_traced(heights) and ((heights < 0).any() or (heights > 1).any()):
            worst = heights[np.argmax(np.abs(heights - 0.5))]
            raise ValueError(f"values: got {worst:g}; they multiply the learning rate and must lie in [0, 1].")
        self.steps, self.values = (a if check.is_traced(a) else np.asarray(a, np.float64) for a in (at, heights))

    def __call__(self, step: Any, lr: Any) -> Array:  # noqa: D102
        return jnp.interp(jnp.asarray(step, float), self.steps, self.values)

    @property
    def limits(self) -> Limits:  # noqa: D102
        return Limits(bool(self.values[-1] == 0), bool(self.values[-1] > 0))

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {"name": "interpolated", "steps": self.steps.tolist(), "values": self.values.tolist()}


class Constant(Schedule):
    """One value at every step."""

    value: float

    def __call__(self, step: Any, lr: Any) -> Array:  # noqa: D102
        return jnp.asarray(self.value, float)

    @property
    def limits(self) -> Limits:  # noqa: D102
        return Limits(self.value == 0, self.value > 0)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {"name": "constant", "value": float(self.value)}


class _Custom(Schedule):
    """A function of the step, which may or may not accept fractional steps."""

    function: Callable[[Any], Any] = eqx.field(static=True)
    fractional: bool = eqx.field(static=True)

    def __call__(self, step: Any, lr: Any) -> Array:
        step = jnp.asarray(step)
        if not self.fractional and not jnp.issubdtype(step.dtype, jnp.integer):
            step = jnp.floor(step + 1e-3).astype(jnp.int32)
        return self.function(step)

    def describe(self) -> dict[str, Any]:
        return {"name": getattr(self.function, "__qualname__", "custom"), "rerunnable": False}


class _Stretched(Schedule):
    schedule: Schedule
    ratio: float
    time: float

    def __call__(self, step: Any, lr: Any) -> Array:
        return self.schedule(jnp.asarray(step, float) / self.ratio, lr * self.time)

    def stretched(self, ratio: float, time: float | None = None) -> Schedule:
        return _Stretched(self.schedule, self.ratio * ratio, self.time * (ratio if time is None else time))

    @property
    def limits(self) -> Limits:
        return self.schedule.limits

    def describe(self) -> dict[str, Any]:
        described = {**self.schedule.describe(), "stretched": float(self.ratio)}
        return described if self.time == self.ratio else described | {"time": float(self.time)}


def _length(steps: Any) -> Any:
    """A number of steps of at least 1 as a leaf, which may be abstract."""
    return steps if check.is_traced(steps) else float(check.at_least("steps", steps, 1))


def as_schedule(value: Any) -> Schedule | None:
    """`value` if it is a schedule or None; a function of the step becomes one.

    Raises:
        TypeError: if it is none of these, or a function that branches on the step in Python.
    """
    if value is None or isinstance(value, Schedule):
        return value
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"schedule: got {value!r}; give a function of the step number with values in [0, 1], or one of sl.Cosine, "
            "sl.Polynomial, sl.Warmup, sl.Interpolated with its arguments."
        )
    try:
        jax.eval_shape(value, jax.ShapeDtypeStruct((), jnp.int32))
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            "schedule: its Python code branches on the value of the step; use jnp.where or optax.schedules instead."
        ) from error
    try:
        jax.eval_shape(value, jax.ShapeDtypeStruct((), jnp.float32))
    except TypeError:  # for example a function that indexes a table
        return _Custom(value, fractional=False)
    return _Custom(value, fractional=True)
