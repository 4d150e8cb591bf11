"""Robust least squares for the numbers of a noisy power-law quadratic, given logged runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from sdelens.core.compilation import Program, program
from sdelens.core.progress import progress_bar
from sdelens.forecast._blocks import Blocks, blocks_of, edges_of, padded
from sdelens.forecast._dynamics import ADAPTIVE, Kind, Setting, kind_of, many, setting_of
from sdelens.forecast._logs import Thinned, thinned
from sdelens.forecast._numbers import Frame, Parameter, logs_of, parameters_of
from sdelens.forecast._run import Run

__all__ = ["Curve", "Solution", "curves_of", "first_step", "frame_of", "solve", "thinned_runs"]

_POINTS: Final = 150
"""Most points of one run that enter the fit."""
_FEW: Final = 6
"""Independent residuals of a curve: the misfit of a smooth curve is smooth too."""
_SCATTER: Final = (0.05, 0.01)
"""Relative scatter of losses assumed for the search and for the first fit."""
_LEAST_SCATTER: Final = 3e-4
_STARTS: Final = 6
_SEARCH, _POLISH = 30, 100
"""Most evaluations of a search and of a final fit."""
_EVALUATIONS: Final = 200
"""Usual number of evaluations of a fit, for the choice of compiler options."""


class Curve(NamedTuple):
    """What of a run enters the fit.

    Attributes:
        kind: law of its optimizer.
        setting: what the law depends on besides the learning rates.
        blocks: its learning rates.
        places: number of the block after which each loss is read, shape (m,).
        steps: the steps, shape (m,).
        losses: mean losses, shape (m,).
        scatter: relative standard error of these, 0 where it is not known, shape (m,).
    """

    kind: Kind
    setting: Setting
    blocks: Blocks
    places: NDArray[np.int64]
    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    scatter: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Solution:
    """The best point of the fit.

    Attributes:
        theta: its coordinates, shape (k,).
        covariance: their covariance given the runs and the priors, shape (k, k).
        scatter: relative scatter of the losses around the fitted curves.
        residuals: log of each loss over the fitted one, one array per run.
    """

    theta: NDArray[np.float64]
    covariance: NDArray[np.float64]
    scatter: float
    residuals: list[NDArray[np.float64]]


def first_step(rates: NDArray[np.float64]) -> int:
    """First step that enters the fit: the end of the warm-up, and at least 1 % and at most 10 % of the run."""
    peak, total = int(np.argmax(rates >= 0.99 * rates.max())), len(rates)
    return math.ceil(max(min(peak, total / 10), total / 100))


def thinned_runs(runs: Sequence[Run], skip: int | None) -> list[Thinned]:
    """Mean losses of all runs from the end of their warm-up on; the last loss always stays."""
    found = []
    for run in runs:
        thin = thinned(run, _POINTS)
        first = first_step(run.rates()) if skip is None else skip
        keep = (thin.steps >= min(first, thin.steps[-1])) & (thin.steps > 0)
        found.append(Thinned(*(getattr(thin, field.name)[keep] for field in fields(thin))))
    return found


def curves_of(runs: Sequence[Run], logs: Sequence[Thinned], frame: Frame) -> list[Curve]:
    """The curves of all runs with their blocks."""
    found = []
    for run, log in zip(runs, logs, strict=True):
        at = log.steps.round().astype(np.int64)
        edges = edges_of(run.rates(), at)
        scatter = np.nan_to_num(log.scatter / log.losses, nan=0.0)
        log_size = 0.0 if run.size is None or frame.size is None else math.log(run.size / frame.size)
        setting = setting_of(run.optimizer, run.batch_size, log_size)
        places, blocks = np.searchsorted(edges, at), blocks_of(run.rates(), edges)
        found.append(Curve(kind_of(run.optimizer), setting, blocks, places, at, log.losses, scatter))
    return found


def frame_of(runs: Sequence[Run], logs: Sequence[Thinned]) -> Frame:
    """Units of the fit: medians over the runs whose steps have a known size, or over all if there are none."""
    adaptive = [run for run in runs if kind_of(run.optimizer) in ADAPTIVE]
    typical = adaptive or list(runs)
    sizes = [run.size for run in runs if run.size is not None]
    return Frame(
        adaptive=bool(adaptive),
        mixed=0 < len(adaptive) < len(runs),
        batches=len({run.batch_size for run in adaptive}) > 1,
        log_lr=float(np.median([math.log(run.rates().max()) for run in typical])),
        log_batch=float(np.median([math.log(run.batch_size or 1.0) for run in typical])),
        first=float(np.quantile([log.losses[0] for log in logs], 0.9)),
        last=float(min(log.losses.min() for log in logs)),
        size=None if len(set(sizes)) < 2 else float(np.exp(np.median(np.log(sizes)))),
    )


class _Group(NamedTuple):
    """The curves of one kind of optimizer, padded to one shape; `order` are their indices."""

    settings: Setting
    blocks: Blocks
    places: Array
    target: Array
    valid: Array
    order: tuple[int, ...]


def _groups(curves: Sequence[Curve]) -> dict[Kind, _Group]:
    found = {}
    for kind in sorted({curve.kind for curve in curves}):
        order = tuple(i for i, curve in enumerate(curves) if curve.kind == kind)
        here = [curves[i] for i in order]
        most = max(len(curve.places) for curve in here)

        def padded_rows(rows: list[NDArray[Any]], fill: float, most: int = most) -> Array:
            return jnp.asarray(np.stack([np.pad(row, (0, most - len(row)), constant_values=fill) for row in rows]))

        settings = Setting(*(jnp.asarray(column, float) for column in zip(*(c.setting for c in here), strict=True)))
        blocks = Blocks(*(jnp.asarray(column) for column in padded([c.blocks for c in here])))
        found[kind] = _Group(
            settings,
            blocks,
            padded_rows([c.places for c in here], 0),
            padded_rows([np.log(c.losses) for c in here], 0.0),
            padded_rows([np.ones(len(c.places), bool) for c in here], False),
            order,
        )
    return found


def _differences(kind: Kind, frame: Frame, theta: Array, group: _Group) -> Array:
    """Log of the model's loss over the logged one, shape (runs, m)."""
    curve = many(kind, logs_of(theta, frame), group.settings, group.blocks)
    here = jnp.take_along_axis(curve, group.places, axis=1)
    return jnp.where(group.valid, jnp.log(jnp.maximum(here, 1e-30)) - group.target, 0.0)


_values = program(static_argnames=("kind", "frame"))(_differences)
_slopes = program(static_argnames=("kind", "frame"))(jax.jacfwd(_differences, argnums=2))


def _robust(residual: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A residual whose square is the pseudo-Huber loss, and its derivative."""
    root = np.sqrt(1 + residual**2)
    value = residual * np.sqrt(2 / (root + 1))
    return value, np.sqrt(2 / (root + 1)) * (1 - residual**2 / (2 * root * (root + 1)))


class _Problem:
    """Residuals and Jacobian of the fit in units of the priors, x = (θ − centre)/spread."""

    def __init__(self, curves: Sequence[Curve], frame: Frame, tick: Callable[[], None]) -> None:
        self.curves, self.frame, self.tick = curves, frame, tick
        self.parameters: tuple[Parameter, ...] = parameters_of(frame)
        columns = [np.array(column) for column in zip(*(p[1:] for p in self.parameters), strict=True)]
        self.centre, self.spread, self.lower, self.upper = columns
        self.groups = _groups(curves)
        self.sd: list[NDArray[np.float64]] = []
        self.weights: list[float] = []

    def weigh(self, scatter: float, independent: Sequence[float]) -> None:
        """Set the standard deviation of every loss and the number of independent ones per curve."""
        self.sd = [np.sqrt(scatter**2 + curve.scatter**2) for curve in self.curves]
        self.weights = [math.sqrt(n / len(curve.places)) for n, curve in zip(independent, self.curves, strict=True)]

    def theta(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.centre + self.spread * x

    def _rows(self, function: Program, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        theta, found = jnp.asarray(self.theta(x)), [np.zeros(0)] * len(self.curves)
        for kind, group in self.groups.items():
            arguments = kind, self.frame, theta, group._replace(order=())
            values = np.asarray(function.chosen(_EVALUATIONS, *arguments)(*arguments))
            for i, row in zip(group.order, values, strict=True):
                found[i] = row[: len(self.curves[i].places)]
        return found

    def differences(self, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Log of the model's loss over the logged one, per run."""
        return self._rows(_values, x)

    def residuals(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        self.tick()
        rows = zip(self.differences(x), self.sd, self.weights, strict=True)
        return np.concatenate([*(w * _robust(np.clip(row / sd, -1e4, 1e4))[0] for row, sd, w in rows), x])

    def jacobian(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = zip(self.differences(x), self._rows(_slopes, x), self.sd, self.weights, strict=True)
        rows = [
            (w * _robust(np.clip(row / sd, -1e4, 1e4))[1] / sd)[:, None] * slope * self.spread
            for row, slope, sd, w in parts
        ]
        return np.nan_to_num(np.concatenate([*rows, np.eye(len(x))]))

    def fit(self, x: NDArray[np.float64], most: int) -> Any:
        from scipy.optimize import least_squares

        bounds = (self.lower - self.centre) / self.spread, (self.upper - self.centre) / self.spread
        inside = np.clip(x, bounds[0] + 1e-3, bounds[1] - 1e-3)
        return least_squares(
            self.residuals, inside, self.jacobian, bounds=bounds, max_nfev=most, x_scale="jac", ftol=1e-7, xtol=1e-7
        )


def solve(curves: Sequence[Curve], frame: Frame, progress: bool | None) -> Solution:
    """Fit the numbers to the curves.

    Several searches with a wide scatter begin at fixed points of the prior; the best two are fitted with the scatter of
    their own residuals. The result does not depend on chance.
    """
    from scipy.stats import norm, qmc

    with jax.enable_x64(True), progress_bar(progress, _STARTS * _SEARCH + 4 * _POLISH) as report:
        problem = _Problem(curves, frame, lambda: report(1, "fitting the runs"))
        k = len(problem.parameters)
        spread = qmc.Sobol(k, scramble=False).random(8)[1:_STARTS] * 0.9 + 0.05
        starts = np.vstack([np.zeros(k), 0.7 * norm.ppf(spread)])
        few = [min(len(curve.places), _FEW) for curve in curves]
        problem.weigh(_SCATTER[0], few)
        searches = sorted((problem.fit(start, _SEARCH) for start in starts), key=lambda found: float(found.cost))
        problem.weigh(_SCATTER[1], few)
        fits = [problem.fit(found.x, _POLISH) for found in searches[:2]]
        best = min(fits, key=lambda found: float(found.cost))
        for _ in range(2):
            problem.weigh(_scatter(problem.differences(best.x)), few)
            best = problem.fit(best.x, _POLISH)
        rows = problem.differences(best.x)
        jacobian = problem.jacobian(best.x)
    covariance = np.linalg.inv(jacobian.T @ jacobian) * np.outer(problem.spread, problem.spread)
    return Solution(problem.theta(best.x), covariance.astype(np.float64), _scatter(rows), [-row for row in rows])


def _scatter(rows: Sequence[NDArray[np.float64]]) -> float:
    """Relative scatter: √(π/2) times the mean of |residuals|, each run with the weight of its independent residuals."""
    sizes = [np.abs(row).mean() for row in rows]
    weights = [min(len(row), _FEW) for row in rows]
    return max(math.sqrt(math.pi / 2) * float(np.average(sizes, weights=weights)), _LEAST_SCATTER)
