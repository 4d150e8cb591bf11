"""A fitted power-law quadratic: its numbers with limits, what the runs do not tell, and predictions of other runs."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdelens.core import check
from sdelens.core.files import atomic_path
from sdelens.core.limits import OF_FORECAST, normal_point
from sdelens.core.numerals import between, percent
from sdelens.forecast._as_result import Band, result_of
from sdelens.forecast._curve import log_losses, places
from sdelens.forecast._dynamics import Setting, kind_of, setting_of
from sdelens.forecast._identification import at_bounds
from sdelens.forecast._interval import Interval
from sdelens.forecast._number_limits import number_limits
from sdelens.forecast._numbers import Frame, PowerLaw, parameters_of
from sdelens.forecast._plan import Plan, refuse_other_kind, refuse_unstable
from sdelens.forecast._range import FittedRun, outside
from sdelens.optimizers import DecayedOptimizer
from sdelens.results.printable import Parts, Plotted, Remarks, Table

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.forecast._batch_choice import BestBatch
    from sdelens.forecast._decay_choice import DecayStart
    from sdelens.forecast._lr_choice import BestLearningRate
    from sdelens.forecast._schedule_choice import BestSchedule
    from sdelens.results.figures import Sheet
    from sdelens.results.result import Result

__all__ = ["FORMAT", "Forecaster"]

FORMAT: Final = 1
"""Version of the form of a record."""
_SHOWN: Final = 12
"""Most runs in a report, those with the largest residuals."""


@dataclass(frozen=True, eq=False, repr=False)
class Forecaster(Plotted):
    r"""A noisy power-law quadratic fitted to logged runs, from `fit` or `load`.

    Limits come from a normal approximation: the covariance of the numbers given the runs and weak priors, with six
    independent residuals per curve, since the misfit of a smooth curve is smooth; and for a loss also the scatter of
    the runs around their fitted curves. They do not cover what a quadratic cannot describe.

    Attributes:
        numbers: what was fitted.
        runs: the fitted runs with their residuals.
        scatter: relative scatter of the losses around the fitted curves.
        remarks: in words, what these runs do not tell, and runs that do not look like a quadratic.
    """

    numbers: PowerLaw
    runs: tuple[FittedRun, ...]
    scatter: float
    remarks: tuple[str, ...]
    _frame: Frame
    _theta: NDArray[np.float64]
    _covariance: NDArray[np.float64]

    # Numbers

    @property
    def limits(self) -> "pd.DataFrame":
        """The fitted numbers with 90 % limits, and the share of the prior's spread that is left (1: not identified).

        Returns:
            A data frame indexed by number, with columns value, lower, upper and uncertainty.
        """
        import pandas as pd

        parameters, rows = parameters_of(self._frame), {}
        deviation = np.sqrt(np.diag(self._covariance))
        described = self.numbers.describe()
        for name, low, high in zip(*number_limits(self._theta, self._covariance, self._frame), strict=True):
            index = [p.name for p in parameters].index(name)
            share = min(float(deviation[index] / parameters[index].spread), 1.0)
            rows[name] = {"value": described[name], "lower": low, "upper": high, "uncertainty": share}
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def correlations(self) -> "pd.DataFrame":
        """Correlations of the errors of the fitted numbers."""
        import pandas as pd

        deviation = np.sqrt(np.diag(self._covariance))
        names = [p.name for p in parameters_of(self._frame)]
        return pd.DataFrame(self._covariance / np.outer(deviation, deviation), index=names, columns=names)

    # Predictions

    def predict(
        self,
        optimizer: DecayedOptimizer,
        *,
        steps: int,
        batch_size: float | None = None,
        size: float | None = None,
        schedule: ArrayLike | None = None,
        at: ArrayLike | None = None,
        confidence: float = OF_FORECAST,
        label: str = "forecast",
    ) -> "Result":
        """Predict the loss curve of a run.

        Args:
            optimizer: the optimizer with its schedule, of any kind that `Run` takes, also another one than was fitted.
            steps: optimizer steps.
            batch_size: samples or tokens per step, in the unit of the fitted runs; needed exactly if they have one.
            size: number of parameters of the model; needed exactly if runs of different sizes were fitted.
            schedule: multiplier of the learning rate at every step, shape (steps,), instead of the optimizer's own.
            at: steps at which the loss is wanted; default: some 400 steps from the end of the warm-up on, where the fit
                begins (see `fit`), the last among them.
            confidence: two-sided probability of the band, in (0, 1).
            label: name of the curve.

        Returns:
            A `Result` whose only model is the forecast, with its band as quantiles of the loss, and what lies outside
            the range of the fitted runs among its notes. ``with_curve`` adds a logged curve for comparison.

        Raises:
            ValueError, TypeError: if an argument is out of its range, a batch size or model size is missing or was not
                fitted, or the optimizer is unstable on the fitted quadratic; the message names it.
        """
        plan = self.plan(optimizer, steps=steps, batch_size=batch_size, size=size, schedule=schedule)
        band = self.band(plan, places(plan, at), confidence)
        beyond = outside(plan, self.runs, int(band.steps[0]))
        return result_of(self.numbers, len(self.runs), plan, band, confidence, label, beyond)

    def final(
        self,
        optimizer: DecayedOptimizer,
        *,
        steps: int,
        batch_size: float | None = None,
        size: float | None = None,
        schedule: ArrayLike | None = None,
        confidence: float = OF_FORECAST,
    ) -> Interval:
        """Predict the loss at the end of a run; arguments as for `predict`.

        Returns:
            The predicted loss with the limits of a single run.

        Raises:
            ValueError, TypeError: as `predict`.
        """
        plan = self.plan(optimizer, steps=steps, batch_size=batch_size, size=size, schedule=schedule)
        band = self.band(plan, np.array([plan.steps]), confidence)
        return Interval(float(band.value[0]), float(band.lower[0]), float(band.upper[0]))

    def plan(
        self,
        optimizer: DecayedOptimizer,
        *,
        steps: int,
        batch_size: float | None = None,
        size: float | None = None,
        schedule: ArrayLike | None = None,
    ) -> Plan:
        """A run to be predicted, checked; arguments as for `predict`.

        Raises:
            ValueError, TypeError: as `predict`.
        """
        plan = Plan.checked(optimizer, steps, batch_size, size, schedule, self._has_batch, self._frame.size is not None)
        refuse_other_kind(plan, {run.kind for run in self.runs})
        refuse_unstable(plan, self.numbers)
        return plan

    @property
    def _has_batch(self) -> bool:
        return self.runs[0].batch_size is not None

    def log_size(self, size: float | None) -> float:
        """Log of a model's size over the reference size; 0 where sizes were not fitted."""
        return 0.0 if self._frame.size is None or size is None else math.log(size / self._frame.size)

    def setting(self, plan: Plan) -> Setting:
        """What the law of a planned run depends on besides its learning rates."""
        return setting_of(plan.optimizer, plan.batch_size, self.log_size(plan.size))

    def band(self, plan: Plan, at: NDArray[np.int64], confidence: float = OF_FORECAST) -> Band:
        """The predicted losses at steps `at` with limits."""
        value, slope = self._log_losses(plan, at)
        half = _normal(confidence) * np.sqrt(self._variance(slope) + self.scatter**2)
        return Band(at, np.exp(value), np.exp(value - half), np.exp(value + half))

    def difference(self, first: Plan, second: Plan, confidence: float = OF_FORECAST) -> Interval:
        """Final loss of `first` less that of `second`, with limits.

        The uncertainty of the numbers that both share partly cancels; the scatter counts for each, since a quadratic
        does not fit the curves of two schedules in the same way.

        Args:
            first: a run from `plan`.
            second: another one.
            confidence: two-sided probability of the limits, in (0, 1).
        """
        (a, slope_a), (b, slope_b) = (self._log_losses(plan, np.array([plan.steps])) for plan in (first, second))
        first_loss, second_loss = float(np.exp(a[0])), float(np.exp(b[0]))
        variance = self._variance(first_loss * slope_a - second_loss * slope_b)
        misfit = self.scatter * math.hypot(first_loss, second_loss)
        value, half = first_loss - second_loss, _normal(confidence) * math.hypot(math.sqrt(float(variance[0])), misfit)
        return Interval(value, value - half, value + half)

    def _log_losses(self, plan: Plan, at: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log losses at steps `at`, and their derivatives by the coordinates of the fit, shape (n, k)."""
        return log_losses(self._theta, self._frame, kind_of(plan.optimizer), self.setting(plan), plan.rates, at)

    def _variance(self, slope: NDArray[np.float64]) -> NDArray[np.float64]:
        """Variance, to first order, of functions of the numbers with these derivatives, shape (n,)."""
        found: NDArray[np.float64] = np.einsum("ij,jk,ik->i", slope, self._covariance, slope)
        return found

    # Choices

    def best_schedule(
        self,
        steps: int,
        optimizer: DecayedOptimizer,
        *,
        batch_size: float | None = None,
        size: float | None = None,
        warmup: int | None = None,
        peak: bool = False,
    ) -> "BestSchedule":
        r"""The learning-rate schedule with the smallest predicted final loss.

        After a linear warm-up, η(k + 1)/w at step k, the multiplier of η is linear between 32 knots that lie closer
        together towards the end, and never increases, 1 = h₀ ≥ h₁ ≥ … ≥ 0. The final loss is minimised over it with the
        gradient of the forecast, from four fixed starts.

        Args:
            steps: optimizer steps of the run.
            optimizer: the optimizer; its lr is the peak η, and its schedule is not used.
            batch_size: samples or tokens per step; needed exactly if they were fitted.
            size: number of parameters of the model; needed exactly if runs of different sizes were fitted.
            warmup: steps of the warm-up w; default: that of the optimizer's schedule if this is a `Warmup`, or 0.
            peak: whether to choose η too, within a factor of 30, and below what is stable on the fitted quadratic for
                SGD and Momentum. The schedules that are compared then have their own best η.

        Returns:
            The schedule with its predicted final loss, and what it gains over a cosine and over a constant learning
            rate with a decay at the end.

        Raises:
            ValueError, TypeError: if an argument is out of its range, missing, or was not fitted.

        Source: derived here.
        """
        from sdelens.forecast._schedule_choice import best_schedule

        return best_schedule(self, steps, optimizer, batch_size, size, warmup, peak)

    def when_to_decay(
        self,
        steps: int,
        optimizer: DecayedOptimizer,
        *,
        batch_size: float | None = None,
        size: float | None = None,
        warmup: int | None = None,
        end: float = 0.0,
        shape: Literal["linear", "root"] = "linear",
        done: int = 0,
    ) -> "DecayStart":
        """When a learning rate that is constant after a warm-up should begin to decay.

        Args:
            steps: optimizer steps of the run.
            optimizer: the optimizer; its schedule is not used.
            batch_size: as for `best_schedule`.
            size: as for `best_schedule`.
            warmup: as for `best_schedule`.
            end: share of the peak at which the decay ends, in [0, 1).
            shape: ``"linear"``, or ``"root"`` for a decay like 1 − √x in the share x of it.
            done: steps already made at the constant learning rate, before which no decay can begin.

        Returns:
            The step, its predicted final loss, and the losses for other steps.

        Raises:
            ValueError, TypeError: if an argument is out of its range, missing, or was not fitted.

        Source: derived here.
        """
        from sdelens.forecast._decay_choice import when_to_decay

        return when_to_decay(self, steps, optimizer, batch_size, size, warmup, end, shape, done)

    def best_lr(
        self,
        steps: int,
        optimizer: DecayedOptimizer,
        *,
        batch_size: float | None = None,
        size: float | None = None,
        between: tuple[float, float] | None = None,
    ) -> "BestLearningRate":
        """The peak learning rate with the smallest predicted final loss, with the schedule of the optimizer.

        A quadratic does not tell at which learning rate training becomes unstable, except for SGD and Momentum on the
        fitted quadratic itself, of which no unstable learning rate is chosen. If all fitted runs had one peak learning
        rate, or the best one is far from the fitted ones, `remarks` of the result say so.

        Args:
            steps: optimizer steps of the run.
            optimizer: the optimizer with its schedule; its lr matters only if no run of it was fitted.
            batch_size: as for `best_schedule`.
            size: as for `best_schedule`.
            between: smallest and largest learning rate that are tried; default: 1/30 of the smallest and twice the
                largest peak of the fitted runs of this optimizer (of its own lr if there are none): larger ones often
                fail for reasons that a quadratic does not have.

        Returns:
            The learning rate, its predicted final loss, the range that is as good, and the losses for others.

        Raises:
            ValueError, TypeError: if an argument is out of its range, missing, or was not fitted.

        Source: derived here.
        """
        from sdelens.forecast._lr_choice import best_lr

        return best_lr(self, steps, optimizer, batch_size, size, between)

    def best_batch(
        self,
        optimizer: DecayedOptimizer | Callable[[int], DecayedOptimizer],
        *,
        samples: float | None = None,
        time: float | None = None,
        speed: Callable[[float], float] | ArrayLike | None = None,
        lr: Callable[[float], float] | Literal["best"] | None = None,
        loss: float | None = None,
        batch_sizes: ArrayLike | None = None,
        size: float | None = None,
    ) -> "BestBatch":
        r"""The batch size with the smallest predicted final loss, for a number of samples or a time.

        A run has ⌊samples/B⌋ steps at batch size B, or ⌊time · speed(B)⌋. The result also has the steps and samples
        after which each batch size reaches one loss, and the critical batch size, from which on a larger batch costs a
        larger factor of samples than it saves of steps. Where (S/S₀ − 1)(E/E₀ − 1) = 1 for steps S, samples E and
        their least S₀, E₀ (McCandlish et al. 2018, arXiv 1812.06162), it is E₀/S₀, and both are twice the least there.

        Args:
            optimizer: an optimizer with a constant learning rate, or a function of the number of steps that gives the
                optimizer with its schedule, as ``lambda n: sl.AdamW(lr=3e-4, schedule=sl.Cosine(n))``.
            samples: samples or tokens of the run, in the unit of the fitted batch sizes.
            time: time of the run, instead of `samples`.
            speed: steps per unit of time, a function of the batch size or numbers for each of `batch_sizes`.
            lr: learning rate as a function of the batch size, or ``"best"`` for the best one at every batch size,
                within a factor of 32; default: that of the optimizer.
            loss: loss to which steps and samples are counted; default: the smallest predicted one.
            batch_sizes: batch sizes that are tried, increasing, shape (n,); default: 1/64 to 64 times the median fitted
                one, in powers of 2. Those that allow no step are left out.
            size: as for `best_schedule`.

        Returns:
            The batch size, its predicted final loss, and a table of all of them.

        Raises:
            ValueError, TypeError: if an argument is out of its range, missing, or was not fitted.

        Source: derived here.
        """
        from sdelens.forecast._batch_choice import best_batch

        return best_batch(self, optimizer, samples, time, speed, lr, loss, batch_sizes, size)

    # Record

    def describe(self) -> dict[str, Any]:
        """The whole record, JSON types only."""
        return {
            "sdelens_forecast": FORMAT,
            "numbers": self.numbers.describe(),
            "scatter": self.scatter,
            "remarks": list(self.remarks),
            "runs": [run.describe() for run in self.runs],
            "frame": self._frame._asdict(),
            "theta": self._theta.tolist(),
            "covariance": self._covariance.tolist(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, atomically.

        Raises:
            OSError: if it cannot be written.
        """
        with atomic_path(path) as temporary:
            Path(temporary).write_text(json.dumps(self.describe(), indent=1) + "\n", encoding="utf-8")

    def _parts(self) -> Parts:
        limits, bounds = self.limits, at_bounds(self._frame, self._theta)
        rows = [
            [
                str(name),
                f"{row.value:.4g}",
                between(row.lower, row.upper),
                "at a bound" if name in bounds else _identified(row.uncertainty),
            ]
            for name, row in limits.iterrows()
        ]
        order = sorted(range(len(self.runs)), key=lambda i: -self.runs[i].error)
        shown = sorted(order[:_SHOWN])
        runs = [
            [run.name or f"run {i + 1}", str(run.points), f"{run.last:.4g}", f"{percent(run.error)}"]
            for i, run in ((i, self.runs[i]) for i in shown)
        ]
        if len(self.runs) > _SHOWN:
            runs.append([f"… {len(self.runs) - _SHOWN} more", "", "", "smaller"])
        return [
            f"Noisy power-law quadratic fitted to {len(self.runs)} runs; relative scatter {percent(self.scatter)}",
            Table(["number", "value", "90 % limits", "identified"], rows),
            Table(["run", "points", "last loss", "rms residual"], runs),
            *([Remarks(self.remarks)] if self.remarks else []),
        ]

    def _draw(self, sheet: "Sheet") -> None:
        """The fitted curves over the logged ones, and their relative differences below."""
        from sdelens.forecast._figures import plot_fit

        plot_fit(sheet, self.runs, self.scatter)


def _identified(uncertainty: float) -> str:
    return "no" if uncertainty > 0.7 else "poorly" if uncertainty > 0.4 else "yes"


def _normal(confidence: float) -> float:
    confidence = check.number("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}; it must lie in (0, 1), for example 0.9.")
    return normal_point(confidence)
