"""A fitted power-law quadratic: its numbers with limits, what the runs do not tell, and predictions of other runs."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.core.files import atomic_path
from sdelens.forecast._as_result import Band, result_of
from sdelens.forecast._blocks import Blocks, blocks_of, edges_of, padded
from sdelens.forecast._dynamics import Kind, Setting, kind_of, many, setting_of
from sdelens.forecast._fit import curves_of, first_step, frame_of, solve, thinned_runs
from sdelens.forecast._identification import at_bounds, remarks_on
from sdelens.forecast._interval import Interval
from sdelens.forecast._logs import Thinned
from sdelens.forecast._misfit import misfits
from sdelens.forecast._numbers import Frame, PowerLaw, logs_of, parameters_of, power_law_of
from sdelens.forecast._plan import Plan, refuse_other_kind, refuse_unstable
from sdelens.forecast._range import FittedRun, fitted_run, outside
from sdelens.forecast._run import Run
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

__all__ = ["Forecaster", "fit", "load"]

_FORMAT: Final = 1
_SHOWN: Final = 12
"""Most runs in a report, those with the largest residuals."""
_RECORDS: Final = 400
"""Most steps of a predicted curve."""


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
        for name, low, high in zip(*self._number_limits(), strict=True):
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

    def _number_limits(self, z: float = 1.645) -> tuple[list[str], list[float], list[float]]:
        names = [p.name for p in parameters_of(self._frame)]

        def logs(theta: Any) -> Any:
            found = logs_of(theta, self._frame)
            return jnp.stack([jnp.asarray(getattr(found, name)) for name in names])

        with jax.enable_x64(True):
            theta = jnp.asarray(self._theta)
            centre, slope = np.asarray(logs(theta)), np.asarray(jax.jacfwd(logs)(theta))
        half = z * np.sqrt(np.einsum("ij,jk,ik->i", slope, self._covariance, slope))
        low, high = [], []
        for name, middle, width in zip(names, centre, half, strict=True):
            match name:
                case "infimum":
                    low.append(max(middle - width, 0.0))
                    high.append(min(middle + width, self._frame.last))
                case "risk_exponent" | "curvature_exponent" | "modes_exponent":
                    base = 1.0 if name == "risk_exponent" else 0.0
                    low.append(base + (middle - base) * math.exp(-width / (middle - base)))
                    high.append(base + (middle - base) * math.exp(width / (middle - base)))
                case "batch_exponent" | "coordinates_exponent":
                    low.append(middle - width)
                    high.append(middle + width)
                case _:
                    low.append(math.exp(middle - width))
                    high.append(math.exp(middle + width))
        return names, [float(v) for v in low], [float(v) for v in high]

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
        confidence: float = 0.9,
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
        band = self.band(plan, _places(plan, at), confidence)
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
        confidence: float = 0.9,
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

    def band(self, plan: Plan, at: NDArray[np.int64], confidence: float = 0.9) -> Band:
        """The predicted losses at steps `at` with limits."""
        value, slope = self._log_losses(plan, at)
        half = _normal(confidence) * np.sqrt(self._variance(slope) + self.scatter**2)
        return Band(at, np.exp(value), np.exp(value - half), np.exp(value + half))

    def difference(self, first: Plan, second: Plan, confidence: float = 0.9) -> Interval:
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
        edges = edges_of(plan.rates, at)
        blocks, index = padded([blocks_of(plan.rates, edges)]), np.searchsorted(edges, at)
        with jax.enable_x64(True):
            one = Setting(*(np.array([float(value)]) for value in self.setting(plan)))
            arguments = kind_of(plan.optimizer), self._frame, jnp.asarray(self._theta), one, blocks
            value, slope = (np.asarray(part)[0] for part in _log_curve(*arguments))
        return value[index], slope[index]

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
            "sdelens_forecast": _FORMAT,
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
                f"{row.lower:.3g} – {row.upper:.3g}",
                "at a bound" if name in bounds else _identified(row.uncertainty),
            ]
            for name, row in limits.iterrows()
        ]
        order = sorted(range(len(self.runs)), key=lambda i: -self.runs[i].error)
        shown = sorted(order[:_SHOWN])
        runs = [
            [run.name or f"run {i + 1}", str(run.points), f"{run.last:.4g}", f"{100 * run.error:.2g} %"]
            for i, run in ((i, self.runs[i]) for i in shown)
        ]
        if len(self.runs) > _SHOWN:
            runs.append([f"… {len(self.runs) - _SHOWN} more", "", "", "smaller"])
        return [
            f"Noisy power-law quadratic fitted to {len(self.runs)} runs; relative scatter {100 * self.scatter:.2g} %",
            Table(["number", "value", "90 % limits", "identified"], rows),
            Table(["run", "points", "last loss", "rms residual"], runs),
            *([Remarks(self.remarks)] if self.remarks else []),
        ]

    def _draw(self, sheet: "Sheet") -> None:
        """The fitted curves over the logged ones, and their relative differences below."""
        from sdelens.forecast._figures import plot_fit

        plot_fit(sheet, self.runs, self.scatter)


@program(static_argnames=("kind", "frame"))
def _log_curve(kind: Kind, frame: Frame, theta: Any, setting: Setting, blocks: Blocks) -> tuple[Any, Any]:
    """Log losses after every block, shape (1, b + 1), and their derivatives by θ."""

    def function(theta: Any) -> Any:
        return jnp.log(many(kind, logs_of(theta, frame), setting, blocks))

    return function(theta), jax.jacfwd(function)(theta)


def fit(runs: Sequence[Run], *, skip: int | None = None, progress: bool | None = None) -> Forecaster:
    r"""Fit a noisy power-law quadratic to logged runs.

    The loss of each run is that of its optimizer's SDE on the quadratic (see the page on forecasts for the equations).
    Logs are thinned to at most 150 means per run. The numbers minimise the pseudo-Huber loss of log ratios of logged
    and predicted losses, with exact Jacobians, bounds, weak priors and six starts; the result does not depend on
    chance. Every run counts equally, and a run of which only the last loss is known as a sixth of one.

    Args:
        runs: logged runs of one problem: the same model, or models of one family with their sizes, and the same data.
            Optimizers, learning rates, schedules, batch sizes and lengths may differ.
        skip: steps left out at the beginning of each run; default: its warm-up, or 1 % of the run if it has none, and
            at most 10 %.
        progress: show a progress bar on standard error; default: only on a terminal.

    Returns:
        The fitted quadratic, which predicts other runs.

    Raises:
        TypeError: if `runs` are not runs.
        ValueError: if there are fewer losses than numbers, batch sizes or model sizes are given for some runs only, or
            two runs have the same name or the same curve.

    Source: derived here.
    """
    runs = _checked(runs)
    skip = None if skip is None else check.at_least("skip", skip, 0)
    logs = thinned_runs(runs, skip)
    frame = frame_of(runs, logs)
    curves = curves_of(runs, logs, frame)
    wanted, given = len(parameters_of(frame)), sum(len(curve.places) for curve in curves)
    if given < wanted:
        raise ValueError(
            f"runs: they have {given} loss{'' if given == 1 else 'es'} in all after the warm-up, and {wanted} "
            "numbers are to be fitted; add runs, or losses at more steps."
        )
    solution = solve(curves, frame, progress)
    fitted = tuple(fitted_run(*parts) for parts in zip(runs, curves, solution.residuals, strict=True))
    remarks = (*_lost(runs, logs), *misfits(runs, curves, solution), *remarks_on(runs, frame, solution))
    return Forecaster(
        power_law_of(solution.theta, frame),
        fitted,
        solution.scatter,
        remarks,
        frame,
        solution.theta,
        solution.covariance,
    )


def _lost(runs: Sequence[Run], logs: Sequence[Thinned]) -> list[str]:
    """One sentence for every run of which almost nothing is left without its warm-up."""
    return [
        f"{run.name or f'run {i + 1}'}: its {len(run.steps)} losses lie within its warm-up, and only the last of them "
        "is fitted; give a longer log, or skip=0 to fit all."
        for i, (run, log) in enumerate(zip(runs, logs, strict=True))
        if len(run.steps) > 1 and len(log.steps) == 1
    ]


def load(path: str | os.PathLike[str]) -> Forecaster:
    """Read a forecaster that `Forecaster.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file, or was written by a later version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}.")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        version = found["sdelens_forecast"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path: {str(path)!r} is not a forecast; give a file that Forecaster.save wrote.") from error
    if isinstance(version, int) and version > _FORMAT:
        raise ValueError(f"path: {str(path)!r} has format {version}, this version reads {_FORMAT}; upgrade sdelens.")
    try:
        loaded = Forecaster(
            PowerLaw.from_description(found["numbers"]),
            tuple(FittedRun.from_description(run) for run in found["runs"]),
            float(found["scatter"]),
            tuple(found["remarks"]),
            Frame(**found["frame"]),
            np.array(found["theta"], np.float64),
            np.array(found["covariance"], np.float64),
        )
        k = len(parameters_of(loaded._frame))
        if version != _FORMAT or loaded._theta.shape != (k,) or loaded._covariance.shape != (k, k) or not loaded.runs:
            raise ValueError("its parts do not fit together")
        return loaded
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path: {str(path)!r} lacks parts of a forecast ({error}); write it again with Forecaster.save."
        ) from error


def _checked(runs: Any) -> list[Run]:
    if isinstance(runs, Run):
        runs = [runs]
    try:
        runs = list(runs)
    except TypeError as error:
        raise TypeError(f"runs: got {type(runs).__name__}; give a list of sl.forecast.Run.") from error
    for i, run in enumerate(runs):
        if not isinstance(run, Run):
            raise TypeError(f"runs: entry {i} is a {type(run).__name__}; give sl.forecast.Run(curve, optimizer).")
    if not runs:
        raise ValueError("runs: got none; give at least one sl.forecast.Run(curve, optimizer).")
    for name in ("batch_size", "size"):
        lacking = [run.name or f"run {i + 1}" for i, run in enumerate(runs) if getattr(run, name) is None]
        if 0 < len(lacking) < len(runs):
            raise ValueError(f"{name}: missing for {', '.join(lacking[:5])}; give it for all runs, or for none.")
    curves: dict[tuple[bytes, bytes], str] = {}
    for i, run in enumerate(runs):
        name = run.name or f"run {i + 1}"
        first = curves.setdefault((run.steps.tobytes(), run.losses.tobytes()), name)
        if len(run.steps) > 1 and first != name:
            raise ValueError(
                f"runs: {first} and {name} have the same losses at the same steps; leave one of them out, or read the "
                "log of the other run."
            )
    names = [run.name for run in runs if run.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"runs: {names.count(twice)} of them are named {twice!r}; give each its own name=.")
    return runs


def _places(plan: Plan, at: ArrayLike | None) -> NDArray[np.int64]:
    """Steps at which a curve is wanted: given, or half of them equally spaced and half in logarithm."""
    steps = plan.steps
    if at is None:
        first = max(first_step(plan.rates), 1)
        grids = np.linspace(first, steps, _RECORDS // 2), np.geomspace(first, steps, _RECORDS // 2)
        return np.unique(np.concatenate([grid.round() for grid in grids])).astype(np.int64)
    places = np.asarray(check.finite_array("at", at, (1,)))
    if not places.size or (places < 0).any() or (places > steps).any() or (places % 1 != 0).any():
        raise ValueError(f"at: give whole steps from 0 to {steps}.")
    if (np.diff(places) <= 0).any():
        raise ValueError("at: must be strictly increasing; sort the steps and remove duplicates.")
    return places.astype(np.int64)


def _identified(uncertainty: float) -> str:
    return "no" if uncertainty > 0.7 else "poorly" if uncertainty > 0.4 else "yes"


def _normal(confidence: float) -> float:
    from scipy.stats import norm

    confidence = check.number("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}; it must lie in (0, 1), for example 0.9.")
    return float(norm.ppf(0.5 + confidence / 2))
