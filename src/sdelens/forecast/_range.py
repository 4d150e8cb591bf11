"""The fitted runs as a record, and how far a prediction lies outside their range."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sdelens.core.text import brief
from sdelens.forecast._fit import Curve
from sdelens.forecast._plan import Plan
from sdelens.forecast._run import Run

__all__ = ["FittedRun", "fitted_run", "outside", "steps_without_rate"]

_STILL: Final = 0.02
"""Share of the steps up to which a learning rate of 0 at the end is usual."""
_BEYOND: Final = 1.05
"""Ratio from which on a setting is said to lie outside the range."""


@dataclass(frozen=True, eq=False, repr=False)
class FittedRun:
    """A run that was fitted, with its thinned curve and residuals.

    Attributes:
        name: its name, or None.
        kind: law of its optimizer: ``"linear"``, ``"root"`` or ``"sign"``.
        optimizer: description of its optimizer.
        total: its optimizer steps.
        batch_size: samples or tokens per step, or None.
        size: number of parameters, or None.
        peak: its largest learning rate.
        end: its last learning rate.
        distance: sum of its learning rates.
        steps: steps of the curve, shape (m,).
        losses: mean losses at these, shape (m,).
        residuals: log of each loss over the fitted one, shape (m,).
    """

    name: str | None
    kind: str
    optimizer: dict[str, Any]
    total: int
    batch_size: float | None
    size: float | None
    peak: float
    end: float
    distance: float
    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    residuals: NDArray[np.float64]

    __repr__ = brief

    @property
    def points(self) -> int:
        """Number of losses that were fitted."""
        return len(self.steps)

    @property
    def last(self) -> float:
        """Last loss."""
        return float(self.losses[-1])

    @property
    def error(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def describe(self) -> dict[str, Any]:
        """The record, JSON types only."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_description(cls, described: dict[str, Any]) -> "FittedRun":
        """The record that `describe` wrote."""
        arrays = {"steps": np.int64, "losses": np.float64, "residuals": np.float64}
        values: dict[str, Any] = {k: np.array(v, arrays[k]) if k in arrays else v for k, v in described.items()}
        return cls(**values)


def fitted_run(run: Run, curve: Curve, residuals: NDArray[np.float64]) -> FittedRun:
    """The record of one run."""
    rates = run.rates()
    return FittedRun(
        run.name,
        curve.kind,
        run.optimizer.describe(),
        run.total,
        run.batch_size,
        run.size,
        float(rates.max()),
        float(rates[-1]),
        float(rates.sum()),
        curve.steps,
        curve.losses,
        residuals,
    )


def outside(plan: Plan, runs: tuple[FittedRun, ...], first: int | None = None) -> list[str]:
    """In words, what of a plan lies outside the range of the fitted runs; empty if nothing does.

    Args:
        plan: the run.
        runs: the fitted runs.
        first: first step of the predicted curve; default: the last one.
    """
    found = []
    earliest = min(int(run.steps[0]) for run in runs)
    if (plan.steps if first is None else first) < earliest / _BEYOND:
        found.append(f"steps before {earliest}, the first fitted one, are not described")
    still = steps_without_rate(plan.rates)
    if still:
        found.append(f"the learning rate is 0 in the last {still} of {plan.steps} steps")
    name = plan.optimizer.name
    same = [run for run in runs if run.optimizer["name"] == name]
    if not same:
        known = ", ".join(sorted({str(run.optimizer["name"]) for run in runs}))
        found.append(f"{name} was not fitted (only {known}): its curve follows from the theory alone")
    else:
        found += _ratio("the peak learning rate", float(plan.rates.max()), [run.peak for run in same])
        found += _ratio("the sum of learning rates", float(plan.rates.sum()), [run.distance for run in same], False)
        described = plan.optimizer.describe()
        for option in ("b1", "b2", "weight_decay", "eps", "decay", "nesterov"):
            values = {run.optimizer.get(option) for run in same}
            if option in described and described[option] not in values:
                known = ", ".join(sorted(_text(value) for value in values if value is not None))
                found.append(f"{option} = {_text(described[option])} was not fitted (only {known})")
    found += _ratio("the number of steps", plan.steps, [run.total for run in runs], False)
    if plan.batch_size is not None:
        found += _ratio("the batch size", plan.batch_size, [run.batch_size or np.nan for run in runs])
    if plan.size is not None:
        found += _ratio("the model size", plan.size, [run.size or np.nan for run in runs])
    return found


def steps_without_rate(rates: NDArray[np.float64]) -> int:
    """Number of last steps with a learning rate of 0; 0 if they are at most 2 % of all, as at the end of a decay."""
    still = int(len(rates) - np.max(np.flatnonzero(rates), initial=0) - 1)
    return still if still > _STILL * len(rates) else 0


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ratio(what: str, value: float, fitted: list[float], below: bool = True) -> list[str]:
    low, high = min(fitted), max(fitted)
    if value > _BEYOND * high:
        return [f"{what} is {value / high:.3g} times the largest fitted one"]
    if below and value < low / _BEYOND:
        return [f"{what} is {value / low:.3g} times the smallest fitted one"]
    return []
