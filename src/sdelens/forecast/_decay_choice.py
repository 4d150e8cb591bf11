"""When a constant learning rate should begin to decay."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sdelens.core import check
from sdelens.forecast._choice import Choice, interval_text, spaced_table
from sdelens.forecast._interval import Interval
from sdelens.forecast._schedule_choice import after_warmup, decay_over
from sdelens.forecast._trials import NEAR, Fitted, cautions, final_losses, finals, trial_of, warmup_of, with_lr
from sdelens.optimizers import DecayedOptimizer
from sdelens.results.printable import Parts

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["DecayStart", "when_to_decay"]

_COARSE, _FINE = 33, 17
"""Steps that are tried in the whole run, and then between the neighbours of the best one."""
_SHAPES: Final = {"linear": "linear", "root": "1 − √"}


@dataclass(frozen=True, eq=False, repr=False)
class DecayStart(Choice):
    """When a constant learning rate should begin to decay, from `Forecaster.when_to_decay`.

    Attributes:
        optimizer: the optimizer with the chosen schedule.
        steps: optimizer steps of the run.
        start: step at which decay begins; `steps` if it should not decay.
        share: share of the run in which the learning rate decays, 1 − start/steps.
        loss: predicted final loss, with 90 % limits that include the scatter of single runs.
        gain: how much larger the final loss is without decay, with 90 % limits.
        near: earliest and latest step around `start` whose losses exceed the smallest by at most 0.1 %.
        limits: earliest and latest step between which the best one lies, with the 90 % limits of the fit.
        table: a data frame indexed by share, with columns start, loss, lower and upper (90 % limits) and excess, the
            loss less the smallest.
        remarks: in words, what of this choice the fitted runs do not tell.
    """

    optimizer: DecayedOptimizer
    steps: int
    start: int
    share: float
    loss: Interval
    gain: Interval
    near: tuple[int, int]
    limits: tuple[int, int]
    table: "pd.DataFrame"
    remarks: tuple[str, ...]

    def _said(self) -> Parts:
        when = "no decay" if self.start == self.steps else f"begin to decay at step {self.start} of {self.steps}"
        return [
            f"{self.optimizer.name}: {when}, the last {100 * self.share:.3g} % of the run; predicted final loss "
            f"{interval_text(self.loss)}",
            f"better than without decay by {interval_text(self.gain)}",
            f"within {100 * NEAR:g} % of this loss: steps {self.near[0]} to {self.near[1]}; 90 % limits of the best "
            f"step: {self.limits[0]} to {self.limits[1]}",
            spaced_table(self.table, {"start": ".0f", "loss": ".4f", "lower": ".4f", "upper": ".4f", "excess": ".2g"}),
        ]

    def _draw(self, sheet: "Sheet") -> None:
        from sdelens.forecast._choice_figures import plot_losses_along

        axis: NDArray[np.float64] = 100 * self.table.index.to_numpy(float)
        near = (100 * (1 - self.near[1] / self.steps), 100 * (1 - self.near[0] / self.steps))
        label = "share of the run in which the learning rate decays (%)"
        plot_losses_along(sheet, axis, self.table, 100 * self.share, near, label, "linear", " %")


def when_to_decay(
    fitted: Fitted,
    steps: int,
    optimizer: DecayedOptimizer,
    batch_size: Any,
    size: Any,
    warmup: Any,
    end: float,
    shape: str,
    done: int,
) -> DecayStart:
    """See `Forecaster.when_to_decay`."""
    import pandas as pd

    plan = fitted.plan(optimizer, steps=steps, batch_size=batch_size, size=size)
    steps = plan.steps
    warmup, end = warmup_of(optimizer, warmup, steps), check.fraction("end", end)
    check.choice("shape", shape, _SHAPES)
    done = check.at_least("done", done, 0)
    if done >= steps:
        raise ValueError(f"done: got {done} of {steps} steps; give the steps already made, fewer than all.")
    first = max(warmup, done)

    def with_start(start: int) -> DecayedOptimizer:
        schedule = after_warmup(warmup, decay_over(start - warmup, steps - warmup, shape, end))
        return with_lr(optimizer, float(optimizer.lr), schedule)

    def trials(starts: NDArray[np.int64]) -> list[Any]:
        return [trial_of(fitted, with_start(int(start)), steps, plan.batch_size, plan.size) for start in starts]

    # Closer together where the decay is short.
    rest = steps - first
    coarse = np.unique(steps - np.round(rest * np.linspace(0, 1, _COARSE) ** 1.5).astype(np.int64))
    best = int(final_losses(fitted, trials(coarse)).argmin())
    fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)], _FINE).round().astype(np.int64)
    starts = np.union1d(coarse, fine)
    starts = starts[starts != steps - 1]  # under which every step is made at the constant rate, as without decay
    found = finals(fitted, trials(starts))
    at = int(found.value.argmin())
    rows = [[int(s), *found.interval(i), found.difference(i, at).value] for i, s in enumerate(starts)]
    shares = pd.Index(1 - starts / steps, name="share")
    table = pd.DataFrame(rows, shares, ["start", "loss", "lower", "upper", "excess"]).iloc[::-1]
    axis = starts.astype(float)
    near, limits = ((round(low), round(high)) for low, high in (found.near(axis), found.optimum(axis)))
    chosen = with_start(int(starts[at]))
    planned = fitted.plan(chosen, steps=steps, batch_size=plan.batch_size, size=plan.size)
    remarks = cautions(fitted, planned)
    if starts[at] == first and first > 0 and done >= warmup:
        remarks = ("It would be best to decay at once, or to have begun earlier.", *remarks)
    return DecayStart(
        chosen,
        steps,
        int(starts[at]),
        1 - int(starts[at]) / steps,
        found.interval(at),
        found.difference(len(starts) - 1, at),
        near,
        limits,
        table,
        remarks,
    )
