"""The batch size with the smallest predicted final loss for a number of samples or a time, and the steps to a loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdelens.core import check
from sdelens.forecast._batch_runs import FACTOR, BatchRuns, Pair
from sdelens.forecast._choice import Choice, interval_text, spaced_table
from sdelens.forecast._interval import Interval
from sdelens.forecast._plan import stable_lr
from sdelens.forecast._trials import NEAR, Fitted, cautions, finals, with_lr
from sdelens.optimizers import DecayedOptimizer
from sdelens.results.printable import Parts

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["BestBatch", "Critical", "best_batch"]

_OCTAVES: Final = 6
"""Powers of two below and above the median fitted batch size that are tried by default."""


class Critical(NamedTuple):
    """Where larger batches begin to cost more than they save, on the way to one loss.

    Attributes:
        batch_size: where a larger batch saves the same factor of steps as it costs of samples, that is where steps fall
            like 1/√B. Where (steps/least − 1)(samples/least − 1) = 1, both are twice their least there. NaN if there is
            no such place among the batch sizes that were tried.
        steps: steps to the loss there.
        samples: samples to the loss there.
    """

    batch_size: float
    steps: float
    samples: float


@dataclass(frozen=True, eq=False, repr=False)
class BestBatch(Choice):
    """The batch size with the smallest predicted final loss, from `Forecaster.best_batch`.

    Attributes:
        optimizer: the optimizer at this batch size.
        batch_size: samples or tokens per step, in the unit of the fitted runs.
        steps: optimizer steps that the samples or the time allow.
        lr: the peak learning rate.
        loss: predicted final loss, with 90 % limits that include the scatter of single runs.
        near: smallest and largest batch size around it whose losses exceed the smallest by at most 0.1 %.
        limits: ends of the range in which the best one lies, with the 90 % limits of the fit, among those tried.
        target: the loss to which steps and samples are counted.
        critical: where larger batches begin to cost more samples than they save steps, on the way to this loss.
        table: a data frame indexed by batch_size, with columns steps, samples, lr, loss, lower and upper (90 % limits),
            and steps_to_loss and samples_to_loss, NaN where the loss is not reached.
        remarks: in words, what of this choice the fitted runs do not tell.
    """

    optimizer: DecayedOptimizer
    batch_size: float
    steps: int
    lr: float
    loss: Interval
    near: tuple[float, float]
    limits: tuple[float, float]
    target: float
    critical: Critical
    table: "pd.DataFrame"
    remarks: tuple[str, ...]

    def _said(self) -> Parts:
        large = "not shown by these batch sizes"
        if math.isfinite(self.critical.batch_size):
            large = (
                f"{self.critical.batch_size:.4g} ({self.critical.steps:.3g} steps, {self.critical.samples:.3g} samples)"
            )
        forms = {"steps": ".4g", "samples": ".3g", "lr": ".3g", "loss": ".4f", "lower": ".4f", "upper": ".4f"}
        return [
            f"Best batch size for {self.optimizer.name}: {self.batch_size:.4g} with {self.steps} steps and learning "
            f"rate {self.lr:.3g}, predicted final loss {interval_text(self.loss)}",
            f"within {100 * NEAR:g} % of this loss: {self.near[0]:.4g} to {self.near[1]:.4g}; 90 % limits of the "
            f"best: {self.limits[0]:.4g} to {self.limits[1]:.4g}",
            f"critical batch size on the way to a loss of {self.target:.4g}: {large}",
            spaced_table(self.table, {**forms, "steps_to_loss": ".3g", "samples_to_loss": ".3g"}),
        ]

    def _draw(self, sheet: "Sheet") -> None:
        from sdelens.forecast._choice_figures import plot_frontier

        plot_frontier(sheet, self.table, self.target, self.batch_size, self.critical)


def _critical(batches: NDArray[np.float64], steps: NDArray[np.float64]) -> Critical:
    """The critical batch size from steps to a loss."""
    reached = np.isfinite(steps)
    log_b, log_s = np.log(batches[reached]), np.log(steps[reached])
    slope, middle = np.diff(log_s) / np.diff(log_b) + 0.5, 0.5 * (log_b[1:] + log_b[:-1])
    crossing = np.flatnonzero((slope[:-1] < 0) & (slope[1:] >= 0))
    if not crossing.size:
        return Critical(math.nan, math.nan, math.nan)
    i = int(crossing[0])
    at = float(middle[i] + slope[i] / (slope[i] - slope[i + 1]) * (middle[i + 1] - middle[i]))
    steps_at = float(np.interp(at, log_b, log_s))
    return Critical(math.exp(at), math.exp(steps_at), math.exp(at + steps_at))


def _batches(fitted: Fitted, batch_sizes: ArrayLike | None) -> NDArray[np.float64]:
    known = [run.batch_size for run in fitted.runs if run.batch_size is not None]
    if not known:
        raise ValueError("best_batch: the fitted runs have no batch sizes; give them, and fit again.")
    if batch_sizes is None:
        octaves = float(np.median(known)) * 2.0 ** np.arange(-_OCTAVES, _OCTAVES + 1)
        return np.unique(np.maximum(octaves.round(), 1.0))
    found = np.asarray(check.finite_array("batch_sizes", batch_sizes, (1,)), np.float64)
    if (found <= 0).any() or (np.diff(found) <= 0).any():
        raise ValueError("batch_sizes: must be greater than 0 and increase.")
    return found


def _steps(
    batches: NDArray[np.float64], samples: Any, time: Any, speed: Callable[[float], float] | ArrayLike | None
) -> NDArray[np.float64]:
    """Whole steps that the samples or the time allow at each batch size."""
    if (samples is None) == (time is None) or (time is None) != (speed is None):
        raise ValueError(
            "samples, time, speed: give either the number of samples (or tokens) of the run, or the time together with "
            "the speed in steps per unit of it."
        )
    if samples is not None:
        return np.floor(check.positive("samples", samples) / batches * (1 + 1e-9))
    time = check.positive("time", time)
    if callable(speed):
        speeds = np.array([check.positive("speed", speed(float(batch))) for batch in batches])
    else:
        given = np.full(len(batches), speed, float) if isinstance(speed, int | float) else speed
        speeds = np.asarray(check.finite_array("speed", given, (1,)), np.float64)
        if speeds.shape != batches.shape or (speeds <= 0).any():
            raise ValueError(
                f"speed: got {len(speeds)} numbers for {len(batches)} batch sizes; give the steps per unit of time at "
                "each of batch_sizes, greater than 0, one for all, or a function of the batch size."
            )
    return np.floor(time * speeds * (1 + 1e-9))


def best_batch(
    fitted: Fitted,
    optimizer: DecayedOptimizer | Callable[[int], DecayedOptimizer],
    samples: Any,
    time: Any,
    speed: Callable[[float], float] | ArrayLike | None,
    lr: Callable[[float], float] | Literal["best"] | None,
    loss: float | None,
    batch_sizes: ArrayLike | None,
    size: Any,
) -> BestBatch:
    """See `Forecaster.best_batch`."""
    import pandas as pd

    if isinstance(optimizer, DecayedOptimizer) and optimizer.schedule is not None:
        raise ValueError(
            "optimizer: its schedule belongs to one number of steps, which differs between batch sizes; give a "
            "function of the steps, as lambda steps: sl.AdamW(lr=3e-4, schedule=sl.Cosine(steps))."
        )
    if not isinstance(optimizer, DecayedOptimizer) and (isinstance(optimizer, type) or not callable(optimizer)):
        raise TypeError(
            f"optimizer: got {optimizer!r}; give one such as sl.AdamW(lr=3e-4), or a function of the steps."
        )
    if lr is not None and lr != "best" and not callable(lr):
        raise ValueError(f"lr: got {lr!r}; give a function of the batch size, 'best', or leave it out to keep it.")
    target = None if loss is None else check.positive("loss", loss)
    batches = _batches(fitted, batch_sizes)
    steps = _steps(batches, samples, time, speed)
    batches, steps = batches[steps >= 1], steps[steps >= 1]
    if not batches.size:
        raise ValueError("samples, time: they allow not one step at any batch size; give more, or smaller batch sizes.")
    runs, pairs = BatchRuns(fitted, optimizer, lr, size), [Pair(*p) for p in zip(batches, steps, strict=True)]
    first = runs.optimizer(pairs[0])
    fitted.plan(first, steps=int(steps[0]), batch_size=float(batches[0]), size=size)  # checks size and kind
    lrs = runs.losses(pairs, refine=True).lr
    found = finals(fitted, [runs.trial(pair, float(rate)) for pair, rate in zip(pairs, lrs, strict=True)])
    at = int(found.value.argmin())
    target = float(found.value[at]) if target is None else target
    reach = runs.steps_to(target, pairs)
    columns: dict[str, Any] = {"steps": steps, "samples": steps * batches, "lr": lrs}
    limits = np.array([found.interval(i) for i in range(len(batches))])
    columns |= dict(zip(("loss", "lower", "upper"), limits.T, strict=True))
    columns |= {"steps_to_loss": reach, "samples_to_loss": reach * batches}
    table = pd.DataFrame(columns, pd.Index(batches, name="batch_size"))
    chosen = with_lr(runs.optimizer(pairs[at]), float(lrs[at]))
    plan = fitted.plan(chosen, steps=int(steps[at]), batch_size=float(batches[at]), size=size)
    remarks = cautions(fitted, plan, chose_lr=lr is not None, chose_batch=True)
    own = np.array([float(runs.optimizer(pair).lr) for pair in pairs])
    ends = np.minimum(own * FACTOR, stable_lr(first, fitted.numbers)), own / FACTOR
    bound = np.isclose(lrs, ends[0], rtol=0.02) | np.isclose(lrs, ends[1], rtol=0.02)
    if lr == "best" and bound.any():
        remarks = (
            f"At {bound.sum()} of {len(batches)} batch sizes the best learning rate is an end of those that were tried "
            f"(a factor of {FACTOR:g}, or what is stable).",
            *remarks,
        )
    if at == 0 and samples is not None:
        remarks = (
            "With a fixed number of samples the smallest batches are best; `near` and the critical batch size tell how "
            "large they may be.",
            *remarks,
        )
    elif at in (0, len(batches) - 1):
        side = "smallest" if at == 0 else "largest"
        remarks = (f"The best batch size is the {side} that was tried; give others with batch_sizes=.", *remarks)
    return BestBatch(
        chosen,
        float(batches[at]),
        int(steps[at]),
        float(lrs[at]),
        found.interval(at),
        found.near(batches),
        found.optimum(batches),
        target,
        _critical(batches, reach),
        table,
        remarks,
    )
