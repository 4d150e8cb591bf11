"""The schedule with the smallest predicted final loss, and what it gains over others."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sdelens.forecast._choice import Choice, interval_text
from sdelens.forecast._final_loss import FinalLoss
from sdelens.forecast._interval import Interval
from sdelens.forecast._plan import Plan, stable_lr
from sdelens.forecast._trials import (
    Fitted,
    cautions,
    final_losses,
    finals,
    trial_of,
    warmup_of,
    with_lr,
)
from sdelens.optimizers import DecayedOptimizer
from sdelens.optimizers.schedules import Constant, Cosine, Interpolated, Schedule, Warmup
from sdelens.results.printable import Parts

if TYPE_CHECKING:
    from sdelens.results.figures import Sheet

__all__ = ["BestSchedule", "Curve", "after_warmup", "best_schedule", "decay_over"]

_KNOTS: Final = 32
_SHARES: Final = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Shares of the run over which constant learning rates decay in the schedules that are compared."""
_PEAKS: Final = 30.0
"""Largest factor by which the peak learning rate is changed."""
_SHOWN: Final = 300


class Curve(NamedTuple):
    """A schedule and the predicted losses under it, for figures.

    Attributes:
        name: of the schedule.
        steps: steps, shape (n,).
        rates: learning rates at these, shape (n,).
        losses: predicted losses after these, shape (n,).
    """

    name: str
    steps: NDArray[np.int64]
    rates: NDArray[np.float64]
    losses: NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class BestSchedule(Choice):
    """The learning-rate schedule with the smallest predicted final loss, from `Forecaster.best_schedule`.

    Attributes:
        optimizer: the optimizer with this schedule (and the best peak learning rate if it was asked for).
        steps: optimizer steps of the run.
        warmup: steps of its warm-up.
        loss: predicted final loss, with 90 % limits that include the scatter of single runs.
        knots: steps of the run at which the schedule is given, shape (n,); it is linear between them.
        values: multipliers of the peak learning rate at the knots, shape (n,), never increasing.
        cosine: the better of a cosine to 0.1 and one to 0 of the peak, in words.
        over_cosine: how much larger the final loss of `cosine` is, with 90 % limits.
        wsd: the best of a constant learning rate with a decay to 0 over 5 % to 50 % of the run, in words.
        over_wsd: how much larger the final loss of `wsd` is, with 90 % limits.
        remarks: in words, what of this choice the fitted runs do not tell.
    """

    optimizer: DecayedOptimizer
    steps: int
    warmup: int
    loss: Interval
    knots: NDArray[np.int64]
    values: NDArray[np.float64]
    cosine: str
    over_cosine: Interval
    wsd: str
    over_wsd: Interval
    remarks: tuple[str, ...]
    _curves: Callable[[], tuple[Curve, ...]]

    @property
    def schedule(self) -> Schedule:
        """The schedule, which every optimizer takes as ``schedule=`` and which ``describe()`` writes as JSON types."""
        found = self.optimizer.schedule
        assert found is not None
        return found

    def _said(self) -> Parts:
        low = self.values >= 0.99
        flat = int(self.knots[low][-1])
        return [
            f"Best schedule for {self.optimizer.name}, {self.steps} steps: predicted final loss "
            f"{interval_text(self.loss)}",
            f"peak learning rate {float(self.optimizer.lr):.4g}, warm-up {self.warmup} steps, at the peak until step "
            f"{flat} ({100 * flat / self.steps:.0f} % of the run), {self._half()}, at the end "
            f"{100 * self.values[-1]:.3g} % of it",
            f"better than {self.cosine} by {interval_text(self.over_cosine)}",
            f"better than {self.wsd} by {interval_text(self.over_wsd)}",
        ]

    def _half(self) -> str:
        """Where the schedule falls to half of its peak, in words."""
        below = np.flatnonzero(self.values <= 0.5)
        if not below.size or below[0] == 0:
            return "always above half of it" if not below.size else "at half of it or less from the start"
        after, before = below[0], below[0] - 1
        step = np.interp(-0.5, -self.values[[before, after]], self.knots[[before, after]])
        return f"at half of it at step {step:.0f}"

    def _draw(self, sheet: "Sheet") -> None:
        from sdelens.forecast._choice_figures import plot_schedules

        plot_schedules(sheet, self._curves(), self.loss)


def _curves(fitted: Fitted, plans: Sequence[Plan], names: Sequence[str]) -> tuple[Curve, ...]:
    """The schedules and the predicted curves."""
    found = []
    for name, plan in zip(names, plans, strict=True):
        at = np.linspace(1, plan.steps, _SHOWN).round().astype(np.int64)
        at = np.unique(at[at > 0])
        found.append(Curve(name, at, plan.rates[at - 1], fitted.band(plan, at).value))
    return tuple(found)


def after_warmup(warmup: int, then: Schedule) -> Schedule:
    """The schedule after a linear warm-up, if there is one."""
    return Warmup(warmup, then) if warmup else then


def decay_over(start: int, end: int, shape: str, least: float) -> Schedule:
    """A constant learning rate and its decay to `least`, linear or like 1 − √, between two steps."""
    if start >= end:
        return Constant(1.0)
    if shape == "linear":
        return Interpolated([start, end], [1.0, least])
    # Closer together at the beginning, where the root is steep; at most one knot per step.
    share = np.linspace(0, 1, min(_KNOTS, end - start + 1)) ** 2
    return Interpolated(start + share * (end - start), 1 - (1 - least) * np.sqrt(share))


def best_schedule(
    fitted: Fitted, steps: int, optimizer: DecayedOptimizer, batch_size: Any, size: Any, warmup: Any, peak: bool
) -> BestSchedule:
    """See `Forecaster.best_schedule`."""
    plan = fitted.plan(optimizer, steps=steps, batch_size=batch_size, size=size)
    steps, batch_size, size = plan.steps, plan.batch_size, plan.size
    warmup = warmup_of(optimizer, warmup, steps)
    length, lr = steps - warmup, float(optimizer.lr)
    knots = warmup + np.unique(np.round(length * (1 - np.linspace(1, 0, _KNOTS) ** 2)).astype(np.int64))

    def trials(schedules: dict[str, Schedule], lrs: Any) -> list[Any]:
        tried = [with_lr(optimizer, rate, after_warmup(warmup, s)) for s in schedules.values() for rate in lrs]
        return [trial_of(fitted, one, steps, batch_size, size) for one in tried]

    span = (
        (math.log(1 / _PEAKS), math.log(min(_PEAKS, stable_lr(optimizer, fitted.numbers) / lr))) if peak else (0.0, 0.0)
    )
    cosines: dict[str, Schedule] = {f"a cosine to {end:g} of the peak": Cosine(length, end) for end in (0.1, 0.0)}
    decays: dict[str, Schedule] = {
        f"a constant rate with {word} decay to 0 over the last {100 * share:.0f} %": decay_over(
            round(steps * (1 - share)) - warmup, length, shape, 0.0
        )
        for share in _SHARES
        if round(steps * (1 - share)) > warmup
        for shape, word in (("linear", "a linear"), ("root", "a 1−√"))
    }
    if not decays:
        decays = {"a linear decay to 0 after the warm-up": decay_over(0, length, "linear", 0.0)}
    lrs = lr * np.exp(np.linspace(*span, 17)) if peak else [lr]
    others = {**cosines, **decays}
    tried = final_losses(fitted, trials(others, lrs)).reshape(len(others), -1)
    with jax.enable_x64(True):
        problem = FinalLoss(fitted, optimizer, trials({"": Constant(1.0)}, [lr])[0], knots, warmup, steps)
        problem.base = float(tried.min())
        problem.scale = max(float(np.ptp(tried.min(1))), 1e-4 * problem.base)
        start_peak = math.log(float(lrs[int(tried.min(0).argmin())]) / lr)
        rest = (knots - warmup) / length
        starts = [np.ones(len(knots)), 1 - rest, 0.5 * (1 + np.cos(np.pi * rest)), np.clip((1 - rest) / 0.2, 0, 1)]
        bounds = [(0.0, 1.0)] * (len(knots) - 1) + [span]
        found = [problem.solve(np.append(-np.diff(start), start_peak), bounds) for start in starts]
    best = min(found, key=lambda one: float(one.fun))
    heights = np.clip(np.minimum.accumulate(problem.heights(best.x)), 0, 1).round(5)
    chosen = with_lr(
        optimizer, lr * math.exp(float(best.x[-1])), after_warmup(warmup, Interpolated(knots - warmup, heights))
    )
    names, picked = ["best"], [chosen]
    for group in (cosines, decays):
        rows = [list(others).index(name) for name in group]
        row, column = np.unravel_index(int(tried[rows].argmin()), (len(rows), len(lrs)))
        names.append(list(group)[row])
        picked.append(with_lr(optimizer, float(lrs[column]), after_warmup(warmup, group[names[-1]])))
    last = finals(fitted, [trial_of(fitted, one, steps, batch_size, size) for one in picked])
    plans = [fitted.plan(one, steps=steps, batch_size=batch_size, size=size) for one in picked]
    return BestSchedule(
        chosen,
        steps,
        warmup,
        last.interval(0),
        knots,
        heights,
        names[1],
        last.difference(1, 0),
        names[2],
        last.difference(2, 0),
        cautions(fitted, plans[0], chose_lr=peak),
        partial(_curves, fitted, plans, names),
    )
