"""The peak learning rate with the smallest predicted final loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sdelens.core import check
from sdelens.forecast._choice import Choice, interval_text, spaced_table
from sdelens.forecast._interval import Interval
from sdelens.forecast._plan import stable_lr
from sdelens.forecast._trials import (
    NEAR,
    Fitted,
    cautions,
    final_losses,
    finals,
    trial_of,
    with_lr,
)
from sdelens.optimizers import DecayedOptimizer
from sdelens.results.printable import Parts

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["BestLearningRate", "best_lr"]

_FACTOR: Final = 30.0
"""Ratio of the smallest fitted learning rate to the lower end of the default range."""
_ABOVE: Final = 2.0
"""Ratio of its upper end to the largest fitted one: the quadratic does not have what makes large ones fail."""
_COARSE, _FINE = 33, 17
"""Learning rates that are tried in the whole range, and then between the neighbours of the best one."""


@dataclass(frozen=True, eq=False, repr=False)
class BestLearningRate(Choice):
    """The peak learning rate with the smallest predicted final loss, from `Forecaster.best_lr`.

    Attributes:
        optimizer: the optimizer with this learning rate.
        lr: the peak learning rate.
        loss: predicted final loss at it, with 90 % limits that include the scatter of single runs.
        near: ends of the range of learning rates around it whose losses exceed the smallest by at most 0.1 %.
        limits: ends of the range in which the optimum lies, with the 90 % limits of the fit, within those tried.
        table: a data frame indexed by lr, with columns loss, lower and upper (90 % limits) and excess, the loss less
            the smallest.
        remarks: in words, what of this choice the fitted runs do not tell.
    """

    optimizer: DecayedOptimizer
    lr: float
    loss: Interval
    near: tuple[float, float]
    limits: tuple[float, float]
    table: "pd.DataFrame"
    remarks: tuple[str, ...]

    def _said(self) -> Parts:
        return [
            f"Best learning rate for {self.optimizer.name}: {self.lr:.3g}, predicted final loss "
            f"{interval_text(self.loss)}",
            f"within {100 * NEAR:g} % of this loss: {self.near[0]:.3g} to {self.near[1]:.3g}; 90 % limits of the "
            f"optimum: {self.limits[0]:.3g} to {self.limits[1]:.3g}",
            spaced_table(self.table, {"loss": ".4f", "lower": ".4f", "upper": ".4f", "excess": ".2g"}),
        ]

    def _draw(self, sheet: "Sheet") -> None:
        from sdelens.forecast._choice_figures import plot_losses_along

        axis: NDArray[np.float64] = self.table.index.to_numpy(float)
        plot_losses_along(sheet, axis, self.table, self.lr, self.near, "peak learning rate", "log")


def _range(
    fitted: Fitted, optimizer: DecayedOptimizer, between: tuple[float, float] | None
) -> tuple[float, float, bool]:
    """Ends of the learning rates that are tried, and whether the upper one is the limit of stability."""
    stable = stable_lr(optimizer, fitted.numbers)
    if between is None:
        peaks = [run.peak for run in fitted.runs if run.optimizer["name"] == optimizer.name] or [float(optimizer.lr)]
        low, high = min(peaks) / _FACTOR, max(peaks) * _ABOVE
        low = min(low, stable / _FACTOR)
        return low, min(high, stable), high > stable
    try:
        low, high = (check.positive("between", value) for value in between)
    except (TypeError, ValueError) as error:
        raise type(error)(f"between: got {between!r}; give the smallest and the largest learning rate.") from error
    if low >= high:
        raise ValueError(f"between: got {between!r}; give the smallest and the largest learning rate, in this order.")
    if low >= stable:
        raise ValueError(
            f"between: at {low:.3g} {optimizer.name} diverges on the fitted quadratic; give learning rates below "
            f"{stable:.3g}."
        )
    return low, min(high, stable), high > stable


def best_lr(
    fitted: Fitted,
    steps: int,
    optimizer: DecayedOptimizer,
    batch_size: Any,
    size: Any,
    between: tuple[float, float] | None,
) -> BestLearningRate:
    """See `Forecaster.best_lr`."""
    import pandas as pd

    # The optimizer's own learning rate, which may be unstable, is not used.
    safe = with_lr(optimizer, min(float(optimizer.lr), stable_lr(optimizer, fitted.numbers)))
    plan = fitted.plan(safe, steps=steps, batch_size=batch_size, size=size)
    low, high, unstable = _range(fitted, optimizer, between)

    def trials(lrs: NDArray[np.float64]) -> list[Any]:
        return [trial_of(fitted, with_lr(optimizer, lr), plan.steps, plan.batch_size, plan.size) for lr in lrs]

    coarse = np.geomspace(low, high, _COARSE)
    best = int(final_losses(fitted, trials(coarse)).argmin())
    fine = np.geomspace(coarse[max(best - 1, 0)], coarse[min(best + 1, _COARSE - 1)], _FINE)
    axis = np.unique(np.concatenate([coarse, fine[1:-1]]))
    found = finals(fitted, trials(axis))
    at = int(found.value.argmin())
    lr = float(axis[at])
    chosen = with_lr(optimizer, lr)
    rows = [[*found.interval(i), found.difference(i, at).value] for i in range(len(axis))]
    table = pd.DataFrame(rows, pd.Index(axis, name="lr"), ["loss", "lower", "upper", "excess"])
    remarks = cautions(
        fitted, fitted.plan(chosen, steps=plan.steps, batch_size=plan.batch_size, size=plan.size), chose_lr=True
    )
    if at in (0, len(axis) - 1) and not (at > 0 and unstable):
        side = "smallest" if at == 0 else "largest"
        remarks = (
            f"The best learning rate is the {side} that was tried; make a run at it before you look further "
            "(between=).",
            *remarks,
        )
    return BestLearningRate(chosen, lr, found.interval(at), found.near(axis), found.optimum(axis), table, remarks)
