"""A run to be predicted: its optimizer, length, learning rates, batch size and model size."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sdelens.core import check
from sdelens.forecast._dynamics import ADAPTIVE, kind_of
from sdelens.forecast._numbers import PowerLaw
from sdelens.forecast._run import Run
from sdelens.optimizers import SGD, DecayedOptimizer
from sdelens.optimizers.schedules import Constant, Interpolated

__all__ = ["Plan", "refuse_other_kind", "refuse_unstable", "stable_lr"]

_LONGEST: Final = 10**7
"""Most steps of a run: learning rates are kept for each."""
_ROUNDED: Final = 1e-6
"""Excess of a multiplier over 1 that is taken as rounding."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A run to be predicted.

    Attributes:
        optimizer: its optimizer.
        steps: optimizer steps.
        batch_size: samples or tokens per step, or None.
        size: number of parameters, or None.
        rates: learning rate of every step, shape (steps,).
    """

    optimizer: DecayedOptimizer
    steps: int
    batch_size: float | None
    size: float | None
    rates: NDArray[np.float64]

    @classmethod
    def checked(
        cls,
        optimizer: Any,
        steps: Any,
        batch_size: Any,
        size: Any,
        schedule: Any,
        has_batch: bool,
        has_size: bool,
    ) -> "Plan":
        """A plan from a user's arguments; batch and model size are needed exactly if they were fitted.

        Raises:
            ValueError, TypeError: if an argument is not as it should be.
        """
        steps = check.at_least("steps", steps, 1)
        if steps > _LONGEST:
            raise ValueError(f"steps: got {steps}; give at most {_LONGEST:,} optimizer steps, not samples or tokens.")
        for name, value, fitted in (("batch_size", batch_size, has_batch), ("size", size, has_size)):
            if value is None and fitted:
                raise ValueError(
                    f"{name}: missing; the fitted runs differ in it, so that a prediction needs it."
                    if name == "size"
                    else f"{name}: missing; the fitted runs have one, so that a prediction needs it."
                )
            if value is not None and not fitted:
                remedy = "give it for all runs that are fitted" if name == "batch_size" else "fit runs of several sizes"
                raise ValueError(f"{name}: got {value}, but it was not fitted; {remedy}, or leave it out.")
        batch_size = None if batch_size is None else check.positive("batch_size", batch_size)
        size = None if size is None else check.positive("size", size)
        if schedule is not None:
            optimizer = _with_schedule(optimizer, schedule, steps)
        # A run with one loss at its end checks the optimizer and its learning rates.
        rates = Run(([steps], [1.0]), optimizer).rates()
        return cls(optimizer, steps, batch_size, size, rates)


def _with_schedule(optimizer: Any, schedule: Any, steps: int) -> Any:
    if not isinstance(optimizer, DecayedOptimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}; give one such as sl.AdamW(lr=3e-4).")
    if callable(schedule):
        return dataclasses.replace(optimizer, schedule=schedule)
    values = check.finite_array("schedule", schedule, (1,))
    if len(values) != steps:
        raise ValueError(
            f"schedule: got {len(values)} multipliers for {steps} steps; give one per step, or a function of the step."
        )
    if (values < 0).any() or (values > 1 + _ROUNDED).any():
        worst = values[np.argmax(np.abs(values - 0.5))]
        raise ValueError(
            f"schedule: got the multiplier {worst:.9g}; they lie in [0, 1]: give the largest learning rate as the "
            "optimizer's lr."
        )
    values = np.minimum(values, 1.0)
    table = Constant(float(values[0])) if steps == 1 else Interpolated(np.arange(steps), values)
    return dataclasses.replace(optimizer, schedule=table)


def refuse_other_kind(plan: Plan, fitted: set[str]) -> None:
    """An error if no fitted run tells how large gradients are for this kind of optimizer.

    Raises:
        ValueError: naming the kind of run to add.
    """
    name, kind = plan.optimizer.name, kind_of(plan.optimizer)
    if kind not in ADAPTIVE and kind not in fitted:
        raise ValueError(
            f"optimizer: {name} moves in proportion to the gradient, whose size runs of adaptive optimizers do not "
            "tell; fit a run of SGD or Momentum together with them."
        )
    if kind in ADAPTIVE and not fitted & set(ADAPTIVE):
        raise ValueError(
            f"optimizer: {name} divides the gradient of each coordinate by its size, which runs of SGD and Momentum do "
            "not tell; fit a run of an adaptive optimizer together with them."
        )


def largest_lr(optimizer: DecayedOptimizer, numbers: PowerLaw) -> float:
    """Learning rate up to which the law describes the optimizer on the fitted quadratic; infinite for adaptive ones.

    SGD diverges beyond ηλ = 2. Momentum is stable beyond it, but not like SGD.
    """
    return 2 * numbers.coordinates / numbers.curvature if kind_of(optimizer) == "linear" else math.inf


def stable_lr(optimizer: DecayedOptimizer, numbers: PowerLaw) -> float:
    """The largest learning rate that may be chosen, a little below `largest_lr`."""
    return 0.99 * largest_lr(optimizer, numbers)


def refuse_unstable(plan: Plan, numbers: PowerLaw) -> None:
    """An error if SGD diverges on the fitted quadratic, or Momentum moves in another way than SGD.

    Raises:
        ValueError: naming the largest learning rate.
    """
    largest, peak = largest_lr(plan.optimizer, numbers), float(plan.rates.max())
    if peak > largest:
        what = "diverges" if isinstance(plan.optimizer, SGD) else "oscillates in a way that the law does not describe"
        raise ValueError(
            f"lr: got a peak of {peak:.3g}, at which {plan.optimizer.name} {what} on the fitted quadratic, whose "
            f"largest curvature is {2 / largest:.3g}; give a learning rate below {largest:.3g}."
        )
