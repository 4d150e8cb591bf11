"""Many runs that are compared before one is chosen: their final losses with limits, in few compiled programs."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.core.limits import OF_FORECAST, normal_point
from sdelens.forecast._as_result import Band
from sdelens.forecast._blocks import Blocks, blocks_of, edges_of, padded
from sdelens.forecast._dynamics import Kind, LogNumbers, Setting, kind_of, many, setting_of
from sdelens.forecast._interval import Interval
from sdelens.forecast._numbers import Frame, PowerLaw, logs_of
from sdelens.forecast._plan import Plan, stable_lr
from sdelens.forecast._range import FittedRun, outside
from sdelens.forecast._run import multipliers
from sdelens.optimizers import DecayedOptimizer
from sdelens.optimizers.schedules import Schedule, Warmup

__all__ = [
    "NEAR",
    "Finals",
    "Fitted",
    "Trial",
    "cautions",
    "final_losses",
    "finals",
    "trial_of",
    "warmup_of",
    "with_lr",
]

NEAR: Final = 1e-3
"""Relative excess over the smallest loss up to which a choice is as good as the best."""
_SAMPLED: Final = 1 << 15
"""Most steps at which a schedule is evaluated; longer runs are evaluated at this many equally spaced ones."""
_ROWS: Final = 16
"""Runs that are advanced together."""
_SAME: Final = 1.2
"""Ratio up to which learning rates are one."""
_FAR: Final = 2.0
"""Ratio to the fitted learning rates from which on a choice is uncertain."""


class Fitted(Protocol):
    """What a choice needs of a forecaster."""

    @property
    def numbers(self) -> PowerLaw:
        """The fitted numbers."""

    @property
    def runs(self) -> tuple[FittedRun, ...]:
        """The fitted runs."""

    @property
    def scatter(self) -> float:
        """Relative scatter of the losses around the fitted curves."""

    @property
    def _frame(self) -> Frame: ...

    @property
    def _theta(self) -> NDArray[np.float64]: ...

    @property
    def _covariance(self) -> NDArray[np.float64]: ...

    def log_size(self, size: float | None) -> float:
        """Log of a model's size over the reference size."""

    def plan(self, optimizer: DecayedOptimizer, *, steps: int, batch_size: float | None, size: float | None) -> Plan:
        """A checked run."""

    def band(self, plan: Plan, at: NDArray[np.int64]) -> Band:
        """Predicted losses with limits."""


class Trial(NamedTuple):
    """A run that may be chosen.

    Attributes:
        kind: law of its optimizer.
        setting: what the law depends on besides the learning rates.
        blocks: its learning rates.
    """

    kind: Kind
    setting: Setting
    blocks: Blocks

    def with_lr(self, optimizer: DecayedOptimizer, lr: float) -> "Trial":
        """The run of `optimizer` at another learning rate, on which its schedule does not depend."""
        ratio, blocks = lr / float(optimizer.lr), self.blocks
        setting = self.setting
        if optimizer.decay == "independent":
            setting = setting._replace(decay=setting.decay / ratio)
        return Trial(self.kind, setting, Blocks(blocks.steps, blocks.rate * ratio, blocks.square * ratio**2))


def trial_of(
    fitted: Fitted, optimizer: DecayedOptimizer, steps: float, batch_size: float | None, size: float | None
) -> Trial:
    """A run of checked arguments; `steps` need not be whole."""
    count = int(min(max(round(steps), 1), _SAMPLED))
    at = np.arange(count) if count == round(steps) else ((np.arange(count) + 0.5) * steps / count).astype(np.int64)
    rates = float(optimizer.lr) * multipliers(optimizer, at)
    blocks = blocks_of(rates, edges_of(rates))
    blocks = blocks._replace(steps=blocks.steps * (steps / count))
    return Trial(kind_of(optimizer), setting_of(optimizer, batch_size, fitted.log_size(size)), blocks)


def _chunks(trials: Sequence[Trial]) -> Any:
    """Settings, blocks and number of runs of parts of equal shape."""
    for first in range(0, len(trials), _ROWS):
        here = list(trials[first : first + _ROWS])
        rows = here + [here[-1]] * (_ROWS - len(here))
        blocks = padded([row.blocks for row in rows])
        settings = Setting(*(np.array(column, float) for column in zip(*(row.setting for row in rows), strict=True)))
        yield settings, blocks, len(here)


@partial(jax.jit, static_argnames="kind")  # called too often to be compiled the quick way
def _losses(kind: Kind, numbers: LogNumbers, settings: Setting, blocks: Blocks) -> Any:
    """Final losses, shape (n,)."""
    return many(kind, numbers, settings, blocks)[:, -1]


def final_losses(fitted: Fitted, trials: Sequence[Trial]) -> NDArray[np.float64]:
    """Predicted final losses of runs of one kind, shape (n,)."""
    found = []
    with jax.enable_x64(True):
        logs = LogNumbers(*(None if v is None else np.float64(v) for v in fitted.numbers.logs))
        for settings, blocks, count in _chunks(trials):
            found.append(np.asarray(_losses(trials[0].kind, logs, settings, blocks))[:count])
    return np.concatenate(found)


@program(static_argnames=("kind", "frame"))
def _finals(kind: Kind, frame: Frame, theta: Any, settings: Setting, blocks: Blocks) -> tuple[Any, Any]:
    """Final losses, shape (n,), and their derivatives by θ, shape (n, k)."""

    def function(theta: Any) -> Any:
        return many(kind, logs_of(theta, frame), settings, blocks)[:, -1]

    return function(theta), jax.jacfwd(function)(theta)


@dataclasses.dataclass(frozen=True, eq=False)
class Finals:
    """Predicted final losses of several runs, and what is needed for limits.

    Attributes:
        value: losses, shape (n,).
        slope: their derivatives by the coordinates of the fit, shape (n, k).
        covariance: covariance of these coordinates, shape (k, k).
        scatter: relative scatter of a single run.
    """

    value: NDArray[np.float64]
    slope: NDArray[np.float64]
    covariance: NDArray[np.float64]
    scatter: float

    def deviation(self, slope: NDArray[np.float64]) -> Any:
        """Standard deviation of what has this slope, shape (..., k)."""
        return np.sqrt(np.einsum("...i,ij,...j->...", slope, self.covariance, slope))

    def interval(self, i: int) -> Interval:
        """Loss of one run, with limits that include the scatter."""
        relative = float(np.hypot(self.deviation(self.slope[i]) / self.value[i], self.scatter))
        value, factor = float(self.value[i]), float(np.exp(normal_point(OF_FORECAST) * relative))
        return Interval(value, value / factor, value * factor)

    def difference(self, i: int, j: int) -> Interval:
        """Loss of run i less that of run j; the scatter counts for each, since the misfit of two curves differs."""
        value = float(self.value[i] - self.value[j])
        misfit = 0.0 if i == j else self.scatter * float(np.hypot(self.value[i], self.value[j]))
        half = normal_point(OF_FORECAST) * float(np.hypot(self.deviation(self.slope[i] - self.slope[j]), misfit))
        return Interval(value, value - half, value + half)

    def near(self, axis: NDArray[np.float64]) -> tuple[float, float]:
        """Ends of the range along `axis`, around the best run, whose losses exceed its by at most 0.1 %."""
        return _around(axis, self.value <= (1 + NEAR) * self.value.min(), int(self.value.argmin()))

    def optimum(self, axis: NDArray[np.float64]) -> tuple[float, float]:
        """Ends of the range along an increasing `axis` in which the best run lies, with the limits of its fit.

        Between two neighbours the loss may be stationary if the limits of their difference include 0.
        """
        change, half = np.diff(self.value), normal_point(OF_FORECAST) * self.deviation(np.diff(self.slope, axis=0))
        level, best = np.abs(change) <= half, int(self.value.argmin())
        first = last = best
        while first > 0 and level[first - 1]:
            first -= 1
        while last < len(axis) - 1 and level[last]:
            last += 1
        return float(axis[first]), float(axis[last])


def _around(axis: NDArray[np.float64], good: NDArray[np.bool_], best: int) -> tuple[float, float]:
    first = last = best
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(axis) - 1 and good[last + 1]:
        last += 1
    return float(axis[first]), float(axis[last])


def finals(fitted: Fitted, trials: Sequence[Trial]) -> Finals:
    """Predicted final losses of runs of one kind, with what is needed for limits."""
    values, slopes = [], []
    with jax.enable_x64(True):
        theta = jnp.asarray(fitted._theta)
        for settings, blocks, count in _chunks(trials):
            value, slope = _finals(trials[0].kind, fitted._frame, theta, settings, blocks)
            values.append(np.asarray(value)[:count])
            slopes.append(np.asarray(slope)[:count])
    return Finals(np.concatenate(values), np.concatenate(slopes), fitted._covariance, fitted.scatter)


def with_lr(optimizer: DecayedOptimizer, lr: float, schedule: Schedule | None = None) -> DecayedOptimizer:
    """The optimizer with another learning rate and, if it is given, another schedule."""
    more: dict[str, Any] = {} if schedule is None else {"schedule": schedule}
    return dataclasses.replace(optimizer, lr=lr, **more)


def warmup_of(optimizer: DecayedOptimizer, warmup: Any, steps: int) -> int:
    """Steps of the warm-up: given, or those of the optimizer's own schedule, or 0.

    Raises:
        ValueError, TypeError: if it is not a whole number from 0 to 2 less than the steps of the run.
    """
    if steps < 2:
        raise ValueError(f"steps: got {steps}; a schedule is chosen for at least 2 steps.")
    if warmup is None:
        own = optimizer.schedule
        warmup = round(float(own.steps)) if isinstance(own, Warmup) else 0
    warmup = check.at_least("warmup", warmup, 0)
    if warmup > steps - 2:
        raise ValueError(f"warmup: got {warmup} of {steps} steps; give at most {steps - 2}, or a longer run.")
    return warmup


def cautions(fitted: Fitted, plan: Plan, chose_lr: bool = False, chose_batch: bool = False) -> tuple[str, ...]:
    """In words, why a choice may be wrong: what of it the fitted runs do not tell."""
    found = []
    same = [run for run in fitted.runs if run.optimizer["name"] == plan.optimizer.name]
    peaks, peak = [run.peak for run in same], float(plan.rates.max())
    if chose_lr and same:
        if max(peaks) < _SAME * min(peaks):
            found.append(
                f"All fitted runs of {plan.optimizer.name} have the peak learning rate {max(peaks):.3g}, so that the "
                "effect of another one follows from the theory alone; fit a run at another one before you rely on it."
            )
        stable = stable_lr(plan.optimizer, fitted.numbers)
        if peak > 0.99 * stable:
            found.append(
                f"The learning rate is the largest at which {plan.optimizer.name} is stable on the fitted quadratic; "
                "stay well below it, since curvature can grow during training."
            )
        elif peak > _FAR * max(peaks):
            found.append(
                f"The learning rate {peak:.3g} is {peak / max(peaks):.2g} times the largest fitted one; the forecast "
                "does not know where training becomes unstable."
            )
        if peak < min(peaks) / _FAR:
            found.append(
                f"The learning rate {peak:.3g} is {min(peaks) / peak:.2g} times below the smallest fitted one."
            )
    batches = {run.batch_size for run in fitted.runs}
    if chose_batch and len(batches) == 1:
        found.append(
            "All fitted runs have one batch size, so that the effect of another one follows from the theory alone; fit "
            "a run at another one before you rely on it."
        )
    beyond = [text for text in outside(plan, fitted.runs) if not (chose_lr and text.startswith("the peak"))]
    return (*found, *(f"Outside the range of the fitted runs: {text}." for text in beyond))
